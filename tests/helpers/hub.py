"""A local stand-in of the Hugging Face hub's HTTP interface, as far as models are uploaded and downloaded."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def local_hub(token: str) -> Iterator[tuple[str, dict[str, dict[str, bytes]]]]:
    """Serve on a free port until the context is left. Yields the address, and repository -> name -> content.

    Requests without the token are refused as the hub refuses them.
    """
    repositories: dict[str, dict[str, bytes]] = {}

    def address() -> str:
        return f"http://127.0.0.1:{server.server_port}"

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, status, content=b"", **headers):
            self.send_response(status)
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.headers.get("Authorization") != f"Bearer {token}":
                return self.answer(401, {"error": "Invalid credentials"}, X_Error_Message="Invalid credentials")
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = "/".join(filter(None, [asked.get("organization"), asked["name"]]))
                repositories.setdefault(name, {})
                return self.answer(200, {"url": f"{address()}/{name}", "name": name})
            if self.path == "/api/validate-yaml":
                return self.answer(200, {"errors": [], "warnings": []})
            name, _, rest = self.path.removeprefix("/api/models/").rpartition("/")
            name, _, action = name.rpartition("/")
            if action == "preupload":
                files = [
                    {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for one in json.loads(body)["files"]
                ]
                return self.answer(200, {"files": files, "commitOid": COMMIT})
            assert action == "commit" and rest == "main", self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    repositories[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer(
                200, {"success": True, "commitOid": COMMIT, "commitUrl": f"{address()}/{name}/commit/{COMMIT}"}
            )

        def do_GET(self):
            if self.path.startswith("/api/models/"):
                name = "/".join(self.path.removeprefix("/api/models/").split("/")[:2])
                if name not in repositories:
                    return self.answer(404, {}, X_Error_Code="RepoNotFound", X_Error_Message="Repository not found")
                files = [{"rfilename": one} for one in repositories[name]]
                return self.answer(200, {"id": name, "sha": COMMIT, "siblings": files, "tags": []})
            owner, name, _, _, file = self.path.strip("/").split("/", 4)
            found = repositories.get(f"{owner}/{name}", {}).get(file)
            if found is None:
                return self.answer(404, {}, X_Error_Code="EntryNotFound", X_Error_Message="Entry not found")
            return self.answer(
                200, found, ETag=f'"{hashlib.sha1(found).hexdigest()}"', X_Repo_Commit=COMMIT, Accept_Ranges="none"
            )

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield address(), repositories
    finally:
        server.shutdown()
        server.server_close()
