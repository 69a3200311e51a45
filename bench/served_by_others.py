"""Other ways to serve a pair's teacher, in a Starlette application: python -m bench.served_by_others NAME.

"Hugging Face": generate, one request at a time, since a model serves one call. "CTranslate2": its Translator, whose own
queue takes requests as they come. Both answer /v1/completions with events like those of `kdtw serve`.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.routing import Route

from kdtw_fast import load_pair
from kdtw_fast.serve.run import address, listen

Put = Callable[[int], None]  # a token
TOKENS = 64


def hugging_face(pair: Any) -> Callable[[str, Put], None]:
    import torch

    turn = threading.Lock()

    class Streamer:
        def __init__(self, put: Put):
            self.put_token, self.first = put, True

        def put(self, tokens: Any) -> None:
            if not self.first:
                for token in tokens.flatten().tolist():
                    self.put_token(token)
            self.first = False

        def end(self) -> None:
            """Nothing: the answer ends with the call."""

    def decode(text: str, put: Put) -> None:
        inputs = pair.tokenizer([pair.teacher.config.teacher_prompt + text], return_tensors="pt")
        with turn, torch.inference_mode():
            pair.teacher.generate(**inputs, max_new_tokens=TOKENS, do_sample=False, num_beams=1, streamer=Streamer(put))

    return decode


def ctranslate2(pair: Any) -> Callable[[str, Put], None]:
    from ctranslate2 import Translator

    from kdtw_fast.peers import CTranslate2

    converted = CTranslate2(pair.teacher)
    # For a model so small one thread to a request is the fastest, with one client as with many.
    translator = Translator(converted.converted, "cpu", inter_threads=os.cpu_count() or 1, intra_threads=1)

    def decode(text: str, put: Put, converted: CTranslate2 = converted) -> None:
        ids = pair.tokenizer(pair.teacher.config.teacher_prompt + text)["input_ids"]
        pieces = [converted.pieces[token] for token in ids]
        for step in translator.generate_tokens(pieces, max_decoding_length=TOKENS):
            put(step.token_id)

    return decode


SYSTEMS = {"Hugging Face": hugging_face, "CTranslate2": ctranslate2}


def application(decode: Callable[[str, Put], None], tokenizer: Any) -> Starlette:

    async def completions(request: Request) -> StreamingResponse:
        text = json.loads(await request.body())["prompt"]
        loop, queue = asyncio.get_running_loop(), asyncio.Queue[int | None]()

        def put(token: int | None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, token)

        def run() -> None:
            try:
                decode(text, put)
            finally:  # whoever waits for tokens hears of an error, too
                put(None)

        work = loop.run_in_executor(None, run)

        async def events() -> AsyncIterator[str]:
            tokens = 0
            while (token := await queue.get()) is not None:
                tokens += 1
                said = tokenizer.decode([token])
                yield f"data: {json.dumps({'choices': [{'index': 0, 'text': said}]})}\n\n"
            await work
            yield f"data: {json.dumps({'choices': [], 'usage': {'completion_tokens': tokens}})}\n\n"
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return Starlette(routes=[Route("/v1/completions", completions, methods=["POST"])])


def main() -> None:
    pair = load_pair()
    app = application(SYSTEMS[sys.argv[1]](pair), pair.tokenizer)
    listening = listen("127.0.0.1", 0)
    print(address(listening), flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False)).run(sockets=[listening])


if __name__ == "__main__":
    main()
