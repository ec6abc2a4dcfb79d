"""What rollouts take from the settings, as plain values."""

from typing import TYPE_CHECKING, Any

import msgspec

from ops.rollout.spec import Gates

if TYPE_CHECKING:
    from cluster.settings import Settings


class RolloutsSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine must know."""

    version: str = ""  # that a new Ray cluster serves; "": the model is no version
    store: str | None = None  # directory of versions
    audit_path: str | None = None  # file of the audit log; None: in the controller's store only
    defaults: dict[str, Any] = {}  # fields of a RolloutSpec that are not asked for


def rollouts_spec(settings: "Settings") -> RolloutsSpec:
    """`settings` must be resolved."""
    given = settings.rollout.model_dump(exclude={"audit_path"})
    gates = {name: given.pop(name) for name in Gates.__struct_fields__}
    store = settings.model.store_directory
    return RolloutsSpec(
        version=settings.model.version_name,
        store=str(store) if store is not None else None,
        audit_path=str(settings.rollout.audit_path) if settings.rollout.audit_path is not None else None,
        defaults=given | {"gates": gates},
    )
