"""The messages of the Open Inference Protocol V2 over gRPC, from their published definition.

KServe open-inference-protocol, `inference_grpc` (package inference), and Triton's statistics and model repository
extensions: names, numbers and types of the fields are the protocol. They are made into classes here, so that nothing
is generated at build time; they have a descriptor pool of their own, for a client in the same process has its own too.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"
# message: fields as in a .proto file; `map` is map<string, InferParameter> or of what it names, `choice` begins the
# fields of one oneof.
MESSAGES = {
    "ServerLiveRequest": "", "ServerLiveResponse": "bool live=1",
    "ServerReadyRequest": "", "ServerReadyResponse": "bool ready=1",
    "ModelReadyRequest": "string name=1; string version=2", "ModelReadyResponse": "bool ready=1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name=1; string version=2; repeated string extensions=3",
    "ModelMetadataRequest": "string name=1; string version=2",
    "ModelMetadataResponse.TensorMetadata": "string name=1; string datatype=2; repeated int64 shape=3",
    "ModelMetadataResponse": "string name=1; repeated string versions=2; string platform=3; "
    "repeated ModelMetadataResponse.TensorMetadata inputs=4; repeated ModelMetadataResponse.TensorMetadata outputs=5",
    "InferParameter": "choice; bool bool_param=1; int64 int64_param=2; string string_param=3; double double_param=4; "
    "uint64 uint64_param=5",
    "InferTensorContents": "repeated bool bool_contents=1; repeated int32 int_contents=2; "
    "repeated int64 int64_contents=3; repeated uint32 uint_contents=4; repeated uint64 uint64_contents=5; "
    "repeated float fp32_contents=6; repeated double fp64_contents=7; repeated bytes bytes_contents=8",
    "ModelInferRequest.InferInputTensor": "string name=1; string datatype=2; repeated int64 shape=3; "
    "map parameters=4; InferTensorContents contents=5",
    "ModelInferRequest.InferRequestedOutputTensor": "string name=1; map parameters=2",
    "ModelInferRequest": "string model_name=1; string model_version=2; string id=3; map parameters=4; "
    "repeated ModelInferRequest.InferInputTensor inputs=5; "
    "repeated ModelInferRequest.InferRequestedOutputTensor outputs=6; repeated bytes raw_input_contents=7",
    "ModelInferResponse.InferOutputTensor": "string name=1; string datatype=2; repeated int64 shape=3; "
    "map parameters=4; InferTensorContents contents=5",
    "ModelInferResponse": "string model_name=1; string model_version=2; string id=3; map parameters=4; "
    "repeated ModelInferResponse.InferOutputTensor outputs=5; repeated bytes raw_output_contents=6",
    "ModelStreamInferResponse": "string error_message=1; ModelInferResponse infer_response=2",
    "StatisticDuration": "uint64 count=1; uint64 ns=2",
    "InferStatistics": "StatisticDuration success=1; StatisticDuration fail=2; StatisticDuration queue=3; "
    "StatisticDuration compute_infer=5",
    "ModelStatisticsRequest": "string name=1; string version=2",
    "ModelStatistics": "string name=1; string version=2; uint64 inference_count=4; uint64 execution_count=5; "
    "InferStatistics inference_stats=6",
    "ModelStatisticsResponse": "repeated ModelStatistics model_stats=1",
    "RepositoryIndexRequest": "string repository_name=1; bool ready=2",
    "RepositoryIndexResponse.ModelIndex": "string name=1; string version=2; string state=3; string reason=4",
    "RepositoryIndexResponse": "repeated RepositoryIndexResponse.ModelIndex models=1",
    "ModelRepositoryParameter": "choice; bool bool_param=1; int64 int64_param=2; string string_param=3; "
    "bytes bytes_param=4",
    "RepositoryModelLoadRequest": "string repository_name=1; string model_name=2; "
    "map ModelRepositoryParameter parameters=3",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "string repository_name=1; string model_name=2; "
    "map ModelRepositoryParameter parameters=3",
    "RepositoryModelUnloadResponse": "",
}  # fmt: skip
Field = descriptor_pb2.FieldDescriptorProto


def classes() -> dict[str, Any]:
    """The message classes by name.

    >>> message = classes()["ModelReadyRequest"](name="m")
    >>> message.SerializeToString()
    b'\\n\\x01m'
    """
    file = descriptor_pb2.FileDescriptorProto(name="inference.proto", package="inference", syntax="proto3")
    made: dict[str, Any] = {}
    for name in sorted(MESSAGES, key=lambda name: name.count(".")):  # those that hold others first
        outer, _, inner = name.rpartition(".")
        made[name] = (made[outer].nested_type if outer else file.message_type).add(name=inner)
    for name, fields in MESSAGES.items():
        for field in filter(None, fields.split("; ")):
            if field == "choice":
                made[name].oneof_decl.add(name="parameter_choice")
            else:
                _add(made[name], f".inference.{name}", field)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in MESSAGES}


def _add(message: Any, path: str, text: str) -> None:
    *words, last = text.split()
    name, _, number = last.partition("=")
    field = message.field.add(name=name, number=int(number), label=Field.LABEL_OPTIONAL)
    if words[0] in ("repeated", "map"):
        field.label = Field.LABEL_REPEATED
    if message.oneof_decl:
        field.oneof_index = 0
    kind = getattr(Field, f"TYPE_{words[-1].upper()}", None)
    if words[0] == "map":
        entry = message.nested_type.add(name="ParametersEntry")
        entry.options.map_entry = True
        entry.field.add(name="key", number=1, type=Field.TYPE_STRING, label=Field.LABEL_OPTIONAL)
        value = entry.field.add(name="value", number=2, type=Field.TYPE_MESSAGE, label=Field.LABEL_OPTIONAL)
        value.type_name = f".inference.{words[1] if words[1:] else 'InferParameter'}"
        field.type, field.type_name = Field.TYPE_MESSAGE, f"{path}.ParametersEntry"
    elif kind is None:
        field.type, field.type_name = Field.TYPE_MESSAGE, f".inference.{words[-1]}"
    else:
        field.type = kind
