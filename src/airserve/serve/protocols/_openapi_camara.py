"""CAMARA's routes for the OpenAPI document: where each is; what they hold is described by CAMARA itself, in full."""

from __future__ import annotations

from typing import Any

TEXT = {"type": "string"}
OBJECT = {"type": "object"}
SOURCE = "https://github.com/camaraproject/ModelAsAService/tree/r2.1/code/API_definitions"
BASE, BASES = "/knowledge-base/v0.2rc1/knowledge-bases/{knowledgeBaseId}", "/knowledge-base/v0.2rc1/knowledge-bases"
ASSISTANTS = "/qa-assistant-manage/v0.2rc1/assistants"
# Method, path, status and what it does; the body's type, "" for none.
ROUTES = [
    ("post", BASES, 201, "Make a knowledge base", "application/json"),
    ("get", BASES, 200, "The knowledge bases", ""),
    ("get", BASE, 200, "A knowledge base and its documents", ""),
    ("put", BASE, 200, "Change a knowledge base", "application/json"),
    ("delete", BASE, 204, "Delete a knowledge base", ""),
    ("post", f"{BASE}/documents", 201, "Add a document, which is then indexed", "multipart/form-data"),
    ("get", f"{BASE}/documents/{{documentId}}", 200, "A document, and whether it is indexed", ""),
    ("delete", f"{BASE}/documents/{{documentId}}", 204, "Delete a document", ""),
    ("post", ASSISTANTS, 201, "Make an assistant", "application/json"),
    ("get", ASSISTANTS, 200, "The assistants", ""),
    ("get", f"{ASSISTANTS}/{{assistantId}}", 200, "An assistant", ""),
    ("put", f"{ASSISTANTS}/{{assistantId}}", 200, "Change an assistant", "application/json"),
    ("delete", f"{ASSISTANTS}/{{assistantId}}", 204, "Delete an assistant", ""),
    ("post", "/qa-assistant-service/v0.2rc1/answer", 200, "Answer a question from documents", "application/json"),
]  # fmt: skip
FAILS = (400, 401, 403, 404, 409, 413, 415, 422, 429, 500, 503, 504)
ERROR = {
    "type": "object",
    "properties": {"status": {"type": "integer"}, "code": TEXT, "message": TEXT},
    "required": ["status", "code", "message"],
}


def camara_paths(errors: dict[int, str]) -> dict[str, Any]:
    """The paths, with a sentence for each status of `errors`."""
    paths: dict[str, Any] = {}
    for method, path, status, summary, media in ROUTES:
        done: dict[str, Any] = {"description": "Done."}
        if status != 204:
            done["content"] = {"application/json": {"schema": OBJECT}}
        failed = {"application/json": {"schema": {"$ref": "#/components/schemas/camara_error"}}}
        answers = {str(status): done}
        for wrong in FAILS:
            answers[str(wrong)] = {"description": errors.get(wrong, "Not as things are."), "content": failed}
        said: dict[str, Any] = {"summary": summary, "externalDocs": {"url": SOURCE}, "responses": answers}
        if names := [part[1:-1] for part in path.split("/") if part.startswith("{")]:
            said["parameters"] = [{"name": n, "in": "path", "required": True, "schema": TEXT} for n in names]
        if media:
            said["requestBody"] = {"required": True, "content": {media: {"schema": OBJECT}}}
        paths.setdefault(path, {})[method] = said
    return paths
