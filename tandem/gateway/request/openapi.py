"""`GET /openapi.json`: the gateway's API for machines, made from the types that the instances read requests with.

An instance of another engine may understand more fields than are told here; they are passed on.

Source: OpenAPI Specification 3.1.
"""

from __future__ import annotations

import importlib.metadata
from typing import Any, Final

import msgspec

from tandem.gateway.request.internal import INTERNAL
from tandem.protocol.openai import ChatRequest, CompletionRequest

Schema = dict[str, Any]

ERROR: Final[Schema] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
ANSWER: Final[Schema] = {"type": "object", "required": ["id", "choices"]}
LIST: Final[Schema] = {"type": "object", "required": ["data"], "properties": {"data": {"type": "array"}}}


def document() -> Schema:
    """The whole description."""
    bodies, components = msgspec.json.schema_components(
        (CompletionRequest, ChatRequest), ref_template="#/components/schemas/{name}"
    )
    components = _in_their_regular_expressions(components)
    for schema in components.values():
        for name in INTERNAL:
            schema.get("properties", {}).pop(name, None)
    return {
        "openapi": "3.1.0",
        "info": {"title": "tandem", "version": importlib.metadata.version("tandem")},
        "paths": {
            "/v1/completions": {"post": _generating("Complete a prompt", bodies[0])},
            "/v1/chat/completions": {"post": _generating("Answer a conversation", bodies[1])},
            "/v1/models": {"get": {"summary": "The models served", "responses": _responses(LIST)}},
        },
        "components": {
            "schemas": _reachable(components, bodies),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _generating(summary: str, body: Schema) -> Schema:
    content = {"application/json": {"schema": body}}
    responses = _responses(ANSWER)
    responses["200"]["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    return {"summary": summary, "requestBody": {"required": True, "content": content}, "responses": responses}


def _responses(good: Schema) -> Schema:
    return {
        "200": {"description": "The answer", "content": {"application/json": {"schema": good}}},
        "default": {"description": "A refusal or a failure", "content": {"application/json": {"schema": ERROR}}},
    }


def _in_their_regular_expressions(schemas: Schema) -> Schema:
    r"""JSON Schema has ECMAScript's expressions, in which `^` and `$` are what `\A` and `\Z` are in Python's."""
    told = msgspec.json.encode(schemas).decode().replace(r"\\A", "^").replace(r"\\Z", "$")
    decoded: Schema = msgspec.json.decode(told)
    return decoded


def _reachable(components: Schema, roots: Any) -> Schema:
    """The schemas that are still referred to."""
    told = msgspec.json.encode(roots).decode()
    kept: Schema = {}
    while found := {name for name in components if name not in kept and f'/{name}"' in told}:
        kept |= {name: components[name] for name in found}
        told += msgspec.json.encode([components[name] for name in found]).decode()
    return kept
