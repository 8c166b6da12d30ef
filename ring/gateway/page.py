"""`GET /docs`: the OpenAPI description as one plain page that needs nothing from elsewhere."""

from __future__ import annotations

import json
from html import escape
from typing import Any

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color-scheme: light dark }
pre, code { font: 14px/1.4 ui-monospace, monospace }
pre { padding: .8rem; overflow-x: auto; background: #8881; border-radius: 6px }
table { border-collapse: collapse; width: 100% } td, th { text-align: left; vertical-align: top; padding: .2rem .8rem .2rem 0 }
tr { border-bottom: 1px solid #8883 } h2 { margin-top: 2.5rem } summary { cursor: pointer } small { opacity: .7 }
"""


def page(description: dict[str, Any]) -> str:
    """The page."""
    sections = [
        section(path, method, operation, description)
        for path, item in description["paths"].items()
        for method, operation in item.items()
    ]
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>ring over HTTP</title><style>{STYLE}</style>"
        "<h1>ring over HTTP</h1><p>OpenAI's own clients work with the base URL <code>/v1</code> of this address. "
        "The same for machines: <a href=/openapi.json>openapi.json</a>.</p>" + "".join(sections) + "</html>"
    )


def section(path: str, method: str, operation: dict[str, Any], description: dict[str, Any]) -> str:
    """One path."""
    html = f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(operation['summary'])}.</p>"
    if "requestBody" in operation:
        body = operation["requestBody"]["content"]["application/json"]
        example = json.dumps(body["example"])
        html += (
            f"<pre>curl -X POST http://localhost:8000{path} -H 'Content-Type: application/json' -d '{escape(example)}'</pre>"
        )
        name = body["schema"]["$ref"].rpartition("/")[2]
        html += fields(description["components"]["schemas"][name])
    statuses = (f"<tr><td>{status}<td>{escape(told['description'])}" for status, told in operation["responses"].items())
    return html + f"<details><summary>Answers</summary><table>{''.join(statuses)}</table></details>"


def fields(schema: dict[str, Any]) -> str:
    """The fields of a request."""
    rows = []
    for name, field in schema["properties"].items():
        must = " <small>required</small>" if name in schema.get("required", []) else ""
        default = "" if field.get("default") is None else f" <small>default {escape(json.dumps(field['default']))}</small>"
        rows.append(f"<tr><td><code>{escape(name)}</code>{must}<td>{escape(words(field))}{default}")
    about = escape(schema.get("description", ""))
    return f"<p>{about}</p><table><tr><th>field<th>value{''.join(rows)}</table>"


def words(field: dict[str, Any]) -> str:
    """A field's schema in a few words."""
    if "description" in field:
        return str(field["description"])
    if "anyOf" in field:
        return " or ".join(words(kind) for kind in field["anyOf"])
    if "$ref" in field:
        return str(field["$ref"]).rpartition("/")[2]
    if "enum" in field:
        return " or ".join(json.dumps(value) for value in field["enum"])
    least, most = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    bounds = f" from {least}" if least is not None else ""
    bounds += f" to {most}" if most is not None else ""
    of = f" of {words(field['items'])}" if "items" in field else ""
    return str(field.get("type", "anything")) + bounds + of
