"""A head of a batch as a process of its own, against a scripted gateway: RUN DELAY_S.

The answer to a prompt follows from it. SIGUSR2 is the near end of the job, as for a real head.
Prints how many requests have been answered, one line each.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import signal
import sys
from pathlib import Path
from typing import Any

from tarragon_hpc.cli import head_work
from tarragon_hpc.cluster.head import RunInfo
from tarragon_hpc.cluster.work import read_work
from tarragon_hpc.observe.log import configure

DELAY_S = float(sys.argv[2])


async def run_service(
    config: Any, *, run: Path, on_ready: Any, work: Any, more: Any, on_handover: Any, **_: Any
) -> int:
    leaving = asyncio.Event()

    def leave() -> None:
        on_handover()
        leaving.set()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            fields = dict(line.split(": ", 1) for line in head.decode().splitlines()[1:] if line)
            body = json.loads(await reader.readexactly(int(fields["Content-Length"])))
            await asyncio.sleep(DELAY_S)
            if leaving.is_set():
                status, reply = 503, {"error": {"message": "come back", "code": "handover"}}
            else:
                usage = {"prompt_tokens": 1, "completion_tokens": 2}
                name = fields["Idempotency-Key"]
                status, reply = 200, {"text": body["prompt"][::-1], "name": name, "usage": usage}
                print(more()["batch"]["done"], flush=True)
            data = json.dumps(reply).encode()
            writer.write(
                b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nContent-Type: application/json\r\n\r\n%b"
                % (status, len(data), data)
            )
            await writer.drain()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, leave)
    info = RunInfo(run.name, run, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1")
    on_ready(info)
    await work(info)
    return 0


if __name__ == "__main__":
    faulthandler.dump_traceback_later(25)  # a head that hangs says where
    configure("head")
    head_work.run_service = run_service
    run_dir = Path(sys.argv[1])
    sys.exit(head_work.answer_requests(run_dir, read_work(run_dir)))
