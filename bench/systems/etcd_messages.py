"""The few messages of etcd's API (rpc.proto and kv.proto of etcd 3) that the benchmark needs, as protobuf classes.

Described here in place of generated code: protobuf encodes and decodes them in C all the same. Fields that nothing
here reads are left out, which protobuf allows for.
"""

from __future__ import annotations

from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE: Final = "ackord_bench_etcd"
_TYPES: Final = {
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
    "int64": descriptor_pb2.FieldDescriptorProto.TYPE_INT64,
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "int32": descriptor_pb2.FieldDescriptorProto.TYPE_INT32,  # of enums too: the encoding is the same
    "bool": descriptor_pb2.FieldDescriptorProto.TYPE_BOOL,
}
# message -> field -> (number, type); "*" after a type: repeated
_MESSAGES: Final[dict[str, dict[str, tuple[int, str]]]] = {
    "ResponseHeader": {"member_id": (2, "uint64"), "revision": (3, "int64")},
    "KeyValue": {"key": (1, "bytes"), "mod_revision": (3, "int64"), "value": (5, "bytes")},
    "RangeRequest": {"key": (1, "bytes"), "range_end": (2, "bytes"), "limit": (3, "int64")},
    "RangeResponse": {"header": (1, "ResponseHeader"), "kvs": (2, "KeyValue*"), "count": (4, "int64")},
    "PutRequest": {"key": (1, "bytes"), "value": (2, "bytes")},
    "PutResponse": {"header": (1, "ResponseHeader")},
    "Compare": {
        "result": (1, "int32"),
        "target": (2, "int32"),
        "key": (3, "bytes"),
        "mod_revision": (6, "int64"),
    },
    "RequestOp": {"request_range": (1, "RangeRequest"), "request_put": (2, "PutRequest")},
    "TxnRequest": {"compare": (1, "Compare*"), "success": (2, "RequestOp*"), "failure": (3, "RequestOp*")},
    "TxnResponse": {"header": (1, "ResponseHeader"), "succeeded": (2, "bool")},
}
COMPARE_EQUAL: Final = 0
COMPARE_MOD_REVISION: Final = 2


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name=f"{_PACKAGE}.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field_name, (number, kind) in fields.items():
            field = message.field.add(name=field_name, number=number)
            field.label = (
                descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
                if kind.endswith("*")
                else descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL
            )
            kind = kind.removesuffix("*")
            if kind in _TYPES:
                field.type = _TYPES[kind]
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{_PACKAGE}.{kind}"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _MESSAGES
    }


_made = _classes()
RangeRequest: Final = _made["RangeRequest"]
RangeResponse: Final = _made["RangeResponse"]
PutRequest: Final = _made["PutRequest"]
PutResponse: Final = _made["PutResponse"]
Compare: Final = _made["Compare"]
RequestOp: Final = _made["RequestOp"]
TxnRequest: Final = _made["TxnRequest"]
TxnResponse: Final = _made["TxnResponse"]
