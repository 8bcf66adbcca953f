"""ClassifyService: Classify here, StreamClassify in `stream_classify`."""

from __future__ import annotations

from typing import Final

from shoal.v1 import classify_pb2

from shoal_server.front import convert, convert_classify
from shoal_server.front.classifier import Classifier
from shoal_server.front.front import SERVICE_NAMES, Front
from shoal_server.front.interceptors import Incoming, Method, Outgoing, Service
from shoal_server.front.rpc import Rpc
from shoal_server.front.stream_classify import ClassifyStream
from shoal_server.ipc.messages import ModelKind

NAME: Final = SERVICE_NAMES["classify"]


class ClassifyService:
    """Scores texts, text pairs or token ids."""

    def __init__(self, front: Front) -> None:
        self._front = front
        self._classifier = Classifier(front.tokenizers, front.engines)

    def service(self) -> Service:
        """For registration."""
        stream = Method(
            name="StreamClassify",
            request=classify_pb2.StreamClassifyRequest,
            handler=self.stream_classify,
            client_streams=True,
            server_streams=True,
        )
        unary = Method(name="Classify", request=classify_pb2.ClassifyRequest, handler=self.classify)
        return Service(name=NAME, methods=(unary, stream))

    async def classify(self, rpc: Rpc, request: classify_pb2.ClassifyRequest) -> classify_pb2.ClassifyResponse:
        """All inputs by one version, all or nothing; errors as the proto says."""
        reference = convert.model_reference(request.model)
        settings = convert_classify.settings(request.options)
        priority = convert.priority(request.priority)
        inputs = convert_classify.inputs(request.inputs, self._front.config.limits)
        router = self._front.router
        served = await self._front.waker.begin(rpc, reference, ModelKind.CLASSIFIER)
        try:
            rpc.resolved(served.metrics)
            done = await self._classifier.classify(
                served, inputs, settings, priority=priority, deadline_s=rpc.deadline_s
            )
        finally:
            router.end(served)
        rpc.tokenize_s, rpc.queue_s, rpc.run_s = done.tokenize_s, done.queue_s, done.run_s
        manifest = served.text.manifest
        return classify_pb2.ClassifyResponse(
            served_by=convert.served_by(served.key),
            timings=convert.timings(rpc),
            labels=manifest.labels,
            head=convert_classify.head_kind(manifest.head),
            results=convert_classify.classifications(done.found, done.counts),
        )

    async def stream_classify(
        self, rpc: Rpc, requests: Incoming[classify_pb2.StreamClassifyRequest], answers: Outgoing
    ) -> None:
        """Items as they come, answers as they finish; errors as the proto says."""
        await ClassifyStream(rpc, self._front, self._classifier, answers).run(requests)
