"""``decoder.stream``: rows that come and go in one session of the core, and what is handed out when.

Prompts, limits and checks come from the decoder as two functions.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

from kdtw_fast import _core
from kdtw_fast.feeds import Feed
from kdtw_fast.inputs import Item
from kdtw_fast.outputs import GenerationOutput, Timings, one_by_one

# Of _core.Session.add.
RowArguments = tuple[int, _core.Ledger, list[int], list[list[int]], list[_core.Ledger], _core.RowOptions | None]

MOST_UNDECODED = 16  # times in a row that blanks and errors are handed out before rows that run


class Stream:
    """The outputs of one ``decoder.stream`` call: an iterator that decodes as it is asked.

    Rows that run go on while the input is waited for: an iterable that is no sequence is read in a thread of its own,
    never further than there is room for.

    An item that is wrong, or an exception from reading the input, ends the reading: rows that run then are decoded
    to their end and yielded, and the exception, which names the item by its index, comes after them. The same holds
    for a row whose logits are not finite (FloatingPointError). With ``in_order`` the exception takes its item's
    place, and what follows it is dropped. Ctrl-C and other exceptions of the machine come out at once. After any
    exception the stream is closed, and the decoder as usable as before.

    With ``on_error="return"`` a wrong item, or a row at fault, is instead an output of its own, which has ``index``
    and ``error`` and nothing else, and the stream goes on. An exception of the input itself still ends it.

    A blank text is an output of no tokens, with the finish reason "empty" and the text "".

    A stream belongs to one thread at a time; RuntimeError otherwise.

    Attributes:
        failed: index of the item that the exception was about, or None.
    """

    def __init__(
        self,
        session: _core.Session,
        inputs: Iterable[Any],
        read: Callable[[Any, int], Item],
        rows: Callable[[list[Item], list[int]], Iterator[RowArguments]],
        blank: Callable[[int], GenerationOutput],
        words: Callable[[], Any],
        texts: Callable[[GenerationOutput, Item], list[str]],
        pad: int,
        in_order: bool,
        on_error: str = "raise",
    ):
        # Called with every output before it is yielded.
        self.on_output: Callable[[GenerationOutput], None] = lambda out: None
        self.failed: int | None = None
        self._session: _core.Session | None = session
        self._inputs = Feed(inputs)
        self._read, self._rows, self._blank = read, rows, blank
        self._words, self._texts, self._pad, self._in_order = words, texts, pad, in_order
        self._returns_errors = on_error == "return"
        self._read_items = self._added = 0
        self._running: dict[int, tuple[int, Item]] = {}  # row -> its item's index, and the item
        self._finished: dict[int, GenerationOutput] = {}  # in_order: those whose turn has not come
        self._ready: deque[GenerationOutput] = deque()
        self._turn = 0  # in_order: the index to be yielded next
        self._undecoded = 0  # how often in a row rows that run have waited for what needs no decoding
        self._error: Exception | None = None
        self._in_use = threading.Lock()
        self._totals = (0, 0, Timings(0.0, 0.0, 0.0, 0.0))

    @property
    def student_passes(self) -> int:
        """Passes of the student's decoder so far; rows that ran together share them."""
        return self._sums()[0]

    @property
    def teacher_passes(self) -> int:
        """Passes of the teacher's decoder so far."""
        return self._sums()[1]

    @property
    def timings(self) -> Timings:
        """Seconds so far, by where they went; those of who takes the outputs are not in it."""
        return self._sums()[2]

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> GenerationOutput:
        self._take()
        try:
            while not self._ready:
                if self._session is None:
                    raise self._error or StopIteration
                self._advance()
            out = self._ready.popleft()
            out._with_words(self._words)
            self.on_output(out)
            return out
        except BaseException:
            self._shut()
            self._error = None  # raised, or overtaken by a worse one
            raise
        finally:
            self._in_use.release()

    def close(self) -> None:
        """Ends the decoding: rows that run are dropped and the memory is freed. A closed stream yields nothing."""
        self._take()
        try:
            self._shut()
            self._ready.clear()
            self._error = None
        finally:
            self._in_use.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> Any:
        raise TypeError("a Stream decodes in this process and cannot be pickled or sent to another; send its outputs")

    def _take(self) -> None:
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("this stream is at work already, in another thread or because its own input asks it")

    def _advance(self) -> None:
        """Admits what there is room for, decodes until a row has finished, and makes ready what may be yielded."""
        assert self._session is not None
        self._admit()
        # What needs no decoding waits for none, unless rows that run have waited for much of it.
        if self._ready and (not self._running or self._undecoded < MOST_UNDECODED):
            self._undecoded += 1
            return
        self._undecoded = 0
        if not self._running:
            if self._inputs.ended:
                self._shut()
            return
        result = self._session.run(False, self._pad, None, self._inputs.bell)
        for row, fault in result["faults"]:
            index, _ = self._running.pop(row)
            self._fail_item(index, FloatingPointError(fault.replace(f"row {row},", f"row {index},", 1)))
        outputs = [out for _, out in one_by_one(result)]
        for out in outputs:
            assert out.index is not None
            out.index, item = self._running.pop(out.index)
            if item.words is not None:
                out.texts = self._texts(out, item)
        self._hand_out(outputs)

    def _hand_out(self, outputs: list[GenerationOutput]) -> None:
        """Makes ready what may be yielded now."""
        if not self._in_order:
            self._ready.extend(outputs)
            return
        self._finished |= {out.index: out for out in outputs if out.index is not None}
        while self._turn in self._finished:
            self._ready.append(self._finished.pop(self._turn))
            self._turn += 1
        if self._turn == self.failed:
            self._shut()

    def _admit(self) -> None:
        if self._inputs.ended or self._session is None:
            return
        items: list[tuple[int, Item]] = []
        try:
            for value in self._inputs.take(self._session.free_slots, wait=not self._running):
                index, self._read_items = self._read_items, self._read_items + 1
                try:
                    item = self._read(value, index)
                    if item.is_blank:
                        self._hand_out([self._blank(index)])
                    else:
                        items.append((index, item))
                except Exception as error:
                    self._fail_item(index, error)
                    if not self._returns_errors:
                        break
        except Exception as error:
            self._fail(self._read_items, error)
        self._add(items)

    def _add(self, items: list[tuple[int, Item]]) -> None:
        """Tokenizes the items together and makes rows of them."""
        assert self._session is not None
        added = 0
        try:
            rows = self._rows([item for _, item in items], [index for index, _ in items])
            for (index, item), arguments in zip(items, rows):
                self._session.add(*arguments)
                self._running[self._added] = index, item
                self._added += 1
                added += 1
        except Exception as error:
            if self._returns_errors and len(items) - added > 1:  # each alone shows which of them it is
                for one in items[added:]:
                    self._add([one])
            else:
                self._fail_item(items[added][0], error)

    def _fail_item(self, index: int, error: Exception) -> None:
        if self._returns_errors:
            self._hand_out([GenerationOutput(index=index, error=error)])
        else:
            self._fail(index, error)

    def _fail(self, index: int, error: Exception) -> None:
        """Ends the reading; of several errors the first item's stays."""
        self._inputs.close()
        if self.failed is None or index < self.failed:
            self.failed, self._error = index, error

    def _shut(self) -> None:
        """Lets go of the session and of what waits for its turn."""
        if self._session is not None:
            self._totals, self._session = self._sums(), None
        self._inputs.close()
        self._running.clear()
        self._finished.clear()

    def _sums(self) -> tuple[int, int, Timings]:
        if self._session is None:
            return self._totals
        return self._session.student_passes, self._session.teacher_passes, Timings(*self._session.seconds)
