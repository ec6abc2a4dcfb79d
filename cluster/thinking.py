"""A stream's parser that does not read again, for every token, all that came before it.

vLLM's `DelegatingParser.parse_delta` (vllm/parser/abstract_parser.py, 0.32) copies a stream's text and token ids for
each token, and DeepSeek-R1's reasoning parser searches them for `<think>`: the thousandth token costs a thousand times
what it has to, and R1-class models think for tens of thousands. Between the marks there is nothing to find: a delta
without one is thinking before `</think>`, and content after it. All else is left to vLLM.
"""

from typing import Any


def without_rescans(parser_class: Any, delta_message: Any, markers_only: type) -> Any:
    """A subclass of a `DelegatingParser` that gives the same deltas.

    `delta_message` is vLLM's `DeltaMessage`. `markers_only` is the reasoning parser whose streams are all thinking up
    to its end token: `DeepSeekR1ReasoningParser`. Streams of any other are left as they are.
    """

    def marks(reasoning: Any) -> set[int]:
        return {reasoning.start_token_id, reasoning.end_token_id}

    class Parser(parser_class):  # type: ignore[misc]
        def parse_delta(
            self,
            delta_text: str,
            delta_token_ids: list[int],
            request: Any,
            prompt_token_ids: list[int] | None = None,
            *,
            finished: bool,
        ) -> Any:
            state, reasoning = self._stream_state, self._reasoning_parser
            checked = state.prompt_reasoning_checked and request.include_reasoning and not finished
            if checked and type(reasoning) is markers_only:
                if state.reasoning_ended:
                    if self._tool_parser is None:
                        return delta_message(content=delta_text)
                elif not marks(reasoning).intersection(delta_token_ids):
                    return delta_message(reasoning=delta_text)
            return super().parse_delta(delta_text, delta_token_ids, request, prompt_token_ids, finished=finished)

    return Parser
