"""CherryPy as it comes, serving files: ``python -m bench.cherrypy_static FILES PORTFILE THREADS``.

Only the listen backlog is raised: with its five places, 128 clients that connect at once would wait
for their connections, and not for what is measured.
"""

from __future__ import annotations

import sys

import cherrypy

_BACKLOG = 1024


class _Root:
    @cherrypy.expose
    def check_health(self) -> str:
        return "{}"


def main() -> None:
    files, portfile, threads = sys.argv[1:]
    cherrypy.config.update(
        {
            "engine.autoreload.on": False,
            "server.socket_host": "127.0.0.1",
            "server.socket_port": 0,
            "server.socket_queue_size": _BACKLOG,
            "server.thread_pool": int(threads),
        }
    )
    static = {"tools.staticdir.on": True, "tools.staticdir.dir": files}
    cherrypy.tree.mount(_Root(), "/", {"/static": static})
    cherrypy.engine.signals.subscribe()
    cherrypy.engine.start()
    with open(portfile, "w", encoding="ascii") as file:
        file.write(str(cherrypy.server.bound_addr[1]))
    cherrypy.engine.block()


if __name__ == "__main__":
    main()
