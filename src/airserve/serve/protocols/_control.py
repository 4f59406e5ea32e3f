"""What a service tells of itself over gRPC, and how its models are changed: V2 but for inference itself.

Each method takes a request's message and who asks, and gives the answer's message, or a coroutine that does.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as version_of
from typing import Any, final

from airserve.serve.guarding import Admitted, Forbidden
from airserve.serve.protocols._contents import M
from airserve.serve.served import Served
from airserve.serve.service import Service, UnknownEndpoint
from airserve.tensors import DATATYPE
from airserve.wire import refuse_to_load_with

OPEN = ("ServerLive", "ServerReady")  # to whoever asks


@final
class Control:
    """The methods of a service."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def server_live(self, request: Any, admitted: Admitted | None) -> Any:
        return M["ServerLiveResponse"](live=True)

    def server_ready(self, request: Any, admitted: Admitted | None) -> Any:
        return M["ServerReadyResponse"](ready=True)

    def model_ready(self, request: Any, admitted: Admitted | None) -> Any:
        permit(admitted, request.name)
        try:
            self._service.endpoint(request.name, request.version)
        except UnknownEndpoint:
            return M["ModelReadyResponse"](ready=False)
        return M["ModelReadyResponse"](ready=True)

    def server_metadata(self, request: Any, admitted: Admitted | None) -> Any:
        extensions = ["binary_tensor_data", "model_repository", "statistics"]
        return M["ServerMetadataResponse"](name="airserve", version=version_of("airserve"), extensions=extensions)

    def model_metadata(self, request: Any, admitted: Admitted | None) -> Any:
        permit(admitted, request.name)
        served = self._service.endpoint(request.name, request.version)
        return self._described(served)

    async def _described(self, served: Served) -> Any:
        signature = await self._service.signature(served)
        tensor_of = M["ModelMetadataResponse.TensorMetadata"]

        def described(tensors: Any) -> list[Any]:
            return [tensor_of(name=t.name, datatype=DATATYPE[t.dtype], shape=t.shape) for t in tensors]

        return M["ModelMetadataResponse"](
            name=served.name,
            versions=self._service.versions(served.name),
            platform=served.platform,
            inputs=described(signature.inputs),
            outputs=described(signature.outputs),
        )

    def model_statistics(self, request: Any, admitted: Admitted | None) -> Any:
        if request.name:
            permit(admitted, request.name)
            found = [self._service.endpoint(request.name, request.version)]
        else:
            found = [served for served in self._service.served if may(admitted, served.name)]
        made = []
        for served in found:
            c = served.table.counted(served.slot)
            queue_ns, compute_ns = int(1e9 * c.queue_s), int(1e9 * c.compute_s)
            stats = M["InferStatistics"](
                success={"count": c.answered, "ns": queue_ns + compute_ns},
                fail={"count": c.failed},
                queue={"count": c.answered, "ns": queue_ns},
                compute_infer={"count": c.answered, "ns": compute_ns},
            )
            made.append(
                M["ModelStatistics"](
                    name=served.name,
                    version=served.version,
                    inference_count=c.rows,
                    execution_count=c.runs,
                    inference_stats=stats,
                )
            )
        return M["ModelStatisticsResponse"](model_stats=made)

    def repository_index(self, request: Any, admitted: Admitted | None) -> Any:
        keys = ("name", "version", "state", "reason")
        rows = [row for row in self._service.index() if (row[2] == "READY" or not request.ready)]
        return M["RepositoryIndexResponse"](
            models=[dict(zip(keys, row, strict=True)) for row in rows if may(admitted, row[0])]
        )

    def repository_model_load(self, request: Any, admitted: Admitted | None) -> Any:
        return self._change("load", request, admitted)

    def repository_model_unload(self, request: Any, admitted: Admitted | None) -> Any:
        return self._change("unload", request, admitted)

    def _change(self, what: Any, request: Any, admitted: Admitted | None) -> Any:
        if admitted is not None and not admitted.tenant.admin:
            raise Forbidden(f"{admitted.tenant.name} may not load or unload models; that takes a key of an admin.")
        refuse_to_load_with(request.parameters)
        return self._changed(what, request.model_name)

    async def _changed(self, what: Any, model: str) -> Any:
        await self._service.change(what, model)
        return M[f"RepositoryModel{what.title()}Response"]()


METHODS: dict[str, Callable[[Control, Any, Admitted | None], Any]] = {
    "ServerLive": Control.server_live, "ServerReady": Control.server_ready, "ModelReady": Control.model_ready,
    "ServerMetadata": Control.server_metadata, "ModelMetadata": Control.model_metadata,
    "ModelStatistics": Control.model_statistics, "RepositoryIndex": Control.repository_index,
    "RepositoryModelLoad": Control.repository_model_load, "RepositoryModelUnload": Control.repository_model_unload,
}  # fmt: skip


def may(admitted: Admitted | None, model: str) -> bool:
    """Whether the one who asks may know of a model."""
    return admitted is None or admitted.tenant.may_use(model)


def permit(admitted: Admitted | None, model: str) -> None:
    """Raises `Forbidden`."""
    if admitted is not None and not may(admitted, model):
        raise Forbidden(f"{admitted.tenant.name} may not use {model[:80]!r}.")
