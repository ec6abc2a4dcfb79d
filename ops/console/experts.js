// Which map of the experts' load is shown, made of /moray/experts.

const isMatrix = (x) =>
  Array.isArray(x) &&
  x.length > 0 &&
  x.every((row) => Array.isArray(row) && row.length === x[0].length) &&
  x[0].length > 0;

// "model.layers.3.mlp.experts" is layer 3.
const layerName = (name, n) => String(name ?? n).match(/\d+/)?.[0] ?? String(name ?? n);

// Each entry over its row's mean; a row without tokens has none.
function overMean(matrix) {
  return matrix.map((row) => {
    const mean = sum(row) / row.length;
    return row.map((x) => (mean > 0 && isNumber(x) ? x / mean : null));
  });
}

function expertMap(told, view) {
  const tokens = isMatrix(told?.tokens) ? told.tokens : null;
  if (!tokens) return null;
  const layers = asList(told.layers);
  const rows = tokens.map((_, n) => layerName(layers[n], n));
  const common = { rows, idle: "No tokens in the last minute.", against: "the layer's mean" };
  if (view === "experts") {
    return {
      ...common,
      columns: tokens[0].map((_, n) => String(n)),
      ratios: overMean(tokens),
      amounts: tokens,
      what: "expert",
      reach: 2,
    };
  }
  if (view === "shards") {
    const shards = isMatrix(told.shard_tokens) ? told.shard_tokens : null;
    return (
      shards && {
        ...common,
        columns: shards[0].map((_, n) => String(n)),
        ratios: overMean(shards),
        amounts: shards,
        what: "shard",
        reach: 1,
      }
    );
  }
  const replicas = asList(told.replicas)
    .map(asObject)
    .filter((r) => Array.isArray(r.shard_max_over_mean));
  if (!replicas.length) return null;
  const ratios = rows.map((_, n) =>
    replicas.map((r) =>
      isNumber(r.shard_max_over_mean[n]) && r.shard_max_over_mean[n] > 0 ? r.shard_max_over_mean[n] : null,
    ),
  );
  return {
    ...common,
    columns: replicas.map((r) => shortId(r.id)),
    ratios,
    amounts: null,
    what: "replica",
    reach: 1,
    against: "its shards' mean (the hottest shard)",
  };
}

let viewChosen = false; // by the reader

function chosenView(told) {
  // With one shard there is nothing to see between shards.
  if (!viewChosen && isMatrix(told?.shard_tokens) && told.shard_tokens[0].length === 1)
    document.querySelector("input[name=view][value=experts]").checked = true;
  return document.querySelector("input[name=view]:checked").value;
}

function showExperts(told, heat, view) {
  const map = expertMap(told, view);
  const why = !told
    ? NO_DATA
    : isMatrix(told.tokens)
      ? "The replicas' layouts differ: choose a column that they share."
      : "No tokens were counted yet.";
  $("experts").classList.toggle("without", !map);
  if (map) heat.show(map);
  else setText($("cell"), why);
  return map && isNumber(told.seconds) ? `layers by ${view}, last ${age(told.seconds)}` : "";
}
