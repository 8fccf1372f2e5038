"""One learner's run in motion: conductor, crew and recorder, advanced step by step by whoever owns the loop."""

from __future__ import annotations

from raydiff.errors import RunFailed
from raydiff.runtime.conductor import Conductor
from raydiff.runtime.crew import Crew
from raydiff.runtime.recorder import Recorder


class Running:
    """``step`` until ``finished``. Both runtimes and every arm go through here."""

    def __init__(self, conductor: Conductor, crew: Crew, recorder: Recorder) -> None:
        self.conductor, self.crew, self.recorder = conductor, crew, recorder

    @property
    def finished(self) -> bool:
        return self.conductor.finished

    def step(self) -> None:
        """Take in what has finished and issue what follows. Raises ``RunFailed`` when nothing can go on."""
        for outcome in self.crew.poll():
            try:
                commands = self.conductor.on(outcome.event)
            except RunFailed as error:
                cause = outcome.facts.get("cause")
                raise RunFailed(f"{error} ({cause})" if cause else str(error)) from None
            for command in commands:
                self.crew.submit(command)
            self.recorder.outcome(outcome, self.conductor)
        self.recorder.tick(self.conductor)
        if self.conductor.stalled():
            why = self.conductor.why_learner_waits()
            raise RunFailed(
                f"{self.recorder.arm}: nothing is in flight and nothing may be issued"
                + (f" ({why[0]}: {why[1]})" if why else "")
            )
