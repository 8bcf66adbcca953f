"""ModelService: every call is checked here and answered by control."""

from __future__ import annotations

from typing import Final

from shoal.v1 import model_pb2

from shoal_server.front import convert, convert_models
from shoal_server.front.front import SERVICE_NAMES, Front
from shoal_server.front.interceptors import Method, Service
from shoal_server.front.rpc import Rpc
from shoal_server.ipc import calls

NAME: Final = SERVICE_NAMES["models"]


class ModelService:
    """Looks at and steers what is served."""

    def __init__(self, front: Front) -> None:
        self._control = front.control

    def service(self) -> Service:
        """For registration."""
        return Service(
            name=NAME,
            methods=(
                Method(name="ListModels", request=model_pb2.ListModelsRequest, handler=self.list_models),
                Method(name="GetModel", request=model_pb2.GetModelRequest, handler=self.get_model),
                Method(name="LoadModel", request=model_pb2.LoadModelRequest, handler=self.load_model),
                Method(name="UnloadModel", request=model_pb2.UnloadModelRequest, handler=self.unload_model),
                Method(
                    name="DeleteModelVersion", request=model_pb2.DeleteModelVersionRequest, handler=self.delete_version
                ),
                Method(name="SetModelLabel", request=model_pb2.SetModelLabelRequest, handler=self.set_label),
            ),
        )

    async def list_models(self, rpc: Rpc, request: model_pb2.ListModelsRequest) -> model_pb2.ListModelsResponse:
        """Models by name."""
        call = calls.ListModels(page_size=convert.page_size(request.page_size), page_token=request.page_token)
        page = await self._control.call(rpc, call, calls.ModelPage)
        return model_pb2.ListModelsResponse(
            models=[convert_models.model(status) for status in page.models], next_page_token=page.next_page_token
        )

    async def get_model(self, rpc: Rpc, request: model_pb2.GetModelRequest) -> model_pb2.GetModelResponse:
        """One model."""
        call = calls.GetModel(name=convert.model_name(request.name, "name"))
        status = await self._control.call(rpc, call, calls.ModelStatus)
        return model_pb2.GetModelResponse(model=convert_models.model(status))

    async def load_model(self, rpc: Rpc, request: model_pb2.LoadModelRequest) -> model_pb2.LoadModelResponse:
        """Answers when the version is live or refused."""
        version = convert.version_number(request.version, "version") if request.HasField("version") else None
        call = calls.LoadModel(name=convert.model_name(request.name, "name"), version=version)
        status = await self._control.call(rpc, call, calls.VersionStatus)
        return model_pb2.LoadModelResponse(version=convert_models.version(status))

    async def unload_model(self, rpc: Rpc, request: model_pb2.UnloadModelRequest) -> model_pb2.UnloadModelResponse:
        """Unloads one version or all."""
        version = convert.version_number(request.version, "version") if request.HasField("version") else None
        call = calls.UnloadModel(name=convert.model_name(request.name, "name"), version=version)
        found = await self._control.call(rpc, call, calls.VersionList)
        return model_pb2.UnloadModelResponse(versions=found.versions)

    async def delete_version(
        self, rpc: Rpc, request: model_pb2.DeleteModelVersionRequest
    ) -> model_pb2.DeleteModelVersionResponse:
        """Deletes a version from the repository."""
        call = calls.DeleteModelVersion(
            name=convert.model_name(request.name, "name"), version=convert.version_number(request.version, "version")
        )
        await self._control.call(rpc, call, calls.Empty)
        return model_pb2.DeleteModelVersionResponse()

    async def set_label(self, rpc: Rpc, request: model_pb2.SetModelLabelRequest) -> model_pb2.SetModelLabelResponse:
        """Moves or removes a label."""
        expected = None
        if request.HasField("expected_version"):  # 0: the label must stand nowhere
            expected = convert.in_range(request.expected_version, "expected_version", low=0, high=convert.MAX_VERSION)
        call = calls.SetModelLabel(
            name=convert.model_name(request.name, "name"),
            label=convert.label_name(request.label, "label"),
            version=convert.version_number(request.version, "version") if request.HasField("version") else None,
            expected_version=expected,
        )
        status = await self._control.call(rpc, call, calls.ModelStatus)
        return model_pb2.SetModelLabelResponse(model=convert_models.model(status))
