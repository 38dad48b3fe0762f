"""A stand-in for the W&B server on this machine: answers what the client asks on its way, and keeps what it was sent."""

from __future__ import annotations

import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

ENTITY = {"id": "e", "name": "me"}
VIEWER = {"id": "1", "username": "me", "entity": "me", "email": "me@here", "name": "me", "flags": "{}", "teams": {"edges": []}}


class Stub:
    """`calls`: (operation, variables) of every GraphQL request; `streamed`: bodies of the run's file stream; `uploaded`: names."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict]] = []
        self.streamed: list[dict] = []
        self.uploaded: list[str] = []
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                try:
                    body = json.loads(sent or b"{}")
                except ValueError:  # the client's own telemetry
                    body = {}
                if self.path.endswith("/file_stream"):
                    stub.streamed.append(body)
                    self.reply({"exitcode": None, "limits": {}})
                else:
                    self.reply({"data": stub.answer(body)})

            def do_PUT(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                stub.uploaded.append(self.path)
                self.reply({})

            def do_GET(self) -> None:
                self.reply({})

            def reply(self, value: dict) -> None:
                data = json.dumps(value).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, format: str, *arguments: object) -> None:
                """Not on the screen of the tests."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, body: dict) -> dict:
        """What the server would say, as far as the client reads it."""
        query, variables = body.get("query", ""), body.get("variables") or {}
        named = re.search(r"\b(?:mutation|query)\s+(\w+)", query)
        name = named[1] if named else ""
        self.calls.append((name, variables))
        if "upsertBucket" in query:
            project = {"id": "p", "name": variables.get("project") or variables.get("model") or "cdpo", "entity": ENTITY}
            run = {"id": "r", "name": variables.get("name"), "displayName": variables.get("displayName"), "config": "{}"}
            run |= {"sweepName": None, "historyLineCount": 0, "project": project, "description": "", "summaryMetrics": "{}"}
            return {"upsertBucket": {"bucket": run, "inserted": True}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/upload/{name}"} for name in variables.get("files", [])]
            return {"createRunFiles": {"runID": "r", "uploadHeaders": [], "files": files}}
        if "upsertView" in query:
            return {"upsertView": {"view": {"id": "v1", "name": variables.get("name") or "nw-x"}, "inserted": True}}
        return {
            "viewer": VIEWER,
            "serverInfo": {"features": [], "cliVersionInfo": {}, "latestLocalVersionInfo": None},
            "model": None,
        }

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
