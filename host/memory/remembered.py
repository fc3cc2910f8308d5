"""What one search finds in the store, and what it leaves there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from ..errors import is_cancel
from .content import Content
from .store import Store, StoredMemory

Read = Callable[[Content | None], Content]


@dataclass
class Remembered:
    """The store, as one search sees it.

    read: all that the searches of this content have in common, before the search, and after it, where it is given what
    was read before. memory: what was computed before, once opened; None where there is none. notes: what the user
    should know; not_kept: why what this search computes is no use to the next one, or "".
    """

    read: Read
    memory: StoredMemory | None = None
    notes: list[str] = field(default_factory=list)
    not_kept: str = ""

    @contextmanager
    def opened(self, store: Store | None, prompt: str, algorithm: str) -> Iterator[None]:
        """Opens the memory of all searches of this content, or none if the content cannot be keyed or the store is off.
        prompt, algorithm: for the store's list."""
        content = self._content() if store is not None and store.settings().enabled else None
        if store is None or content is None:
            yield
            return
        if content.changed:
            self.notes.append(
                f"{content.changed[0]} is not what the last search left there. If nothing that you set has changed, "
                "something else ran with it, and this search may not find what was computed before."
            )
        try:
            with store.memory(content.digest(), prompt, algorithm) as memory:
                self.memory = memory
                yield
        finally:
            self._see_what_is_left(content)

    def set_aside(self, why: Exception) -> bool:
        """Sets aside what no longer fits. Returns whether a search made anew may still use the rest; if not, nothing
        was there but what this search had scored itself."""
        assert self.memory is not None
        count = self.memory.set_aside()
        text = f"What was remembered of this search no longer fits ({why}): "
        if count:
            text += "something changed that does not show in the inputs. "
            text += f"{count} candidates were set aside and the search made anew."
        else:
            text += "the scores are other ones each time, so nothing was taken from memory."
            self.not_kept = text
        self.notes.append(text)
        return bool(count)

    def set_aside_batches(self) -> None:
        """Sets aside what was sampled in batches that turned out to mix their candidates."""
        if self.memory is not None:
            self.memory.set_aside_batches()

    def all_notes(self) -> list[str]:
        """What the user should know at the end."""
        if self.memory is None:
            return self.notes
        return [*self.notes, *self.memory.notes, *filter(None, [self.memory.problem])]

    def what_is_left(self, error: BaseException) -> str:
        """What to tell the user of a search that came to no result."""
        how = "Cancelled." if is_cancel(error) else "Ended by an error."
        memory = self.memory
        if memory is None or self.not_kept:
            return f"{how} {self.not_kept or 'Nothing is kept: storing searches is off.'}"
        if memory.problem:
            return f"{how} {memory.problem}"
        if not memory.works:
            return f"{how} No image was scored yet."
        count = memory.left
        images = "1 image is" if count == 1 else f"{count:,} images are"
        # The limit of the store may have left some out.
        all_of_it = "Nothing is lost: " if count == len(memory.works) else ""
        return f"{how} {all_of_it}{images} kept, and Run goes on from there."

    def _content(self, before: Content | None = None) -> Content | None:
        """What all searches of this content have in common, or None where it cannot be told."""
        try:
            return self.read(before)
        except Exception as error:  # nodes of any pack may be behind it; a search must not fail for its memory
            after = " the next time" * (before is not None)
            self.not_kept = f"The candidates of this search are not remembered{after}: {error}"
            self.notes.append(self.not_kept)
            return None

    def _see_what_is_left(self, before: Content) -> None:
        """Learns what the search left in the objects that it used. Says where something else has changed: the next
        search would find nothing, and nobody would know why."""
        after = self._content(before)
        if after is not None and after.digest() != before.digest():
            self.not_kept = (
                f"Sampling changed {after.differs_at(before)}, which is part of what the candidates are remembered by: "
                "the next run of this search may not find them."
            )
            self.notes.append(self.not_kept)
