"""The keys of a capture's screen: one binding for each thing to do, with a name for remapping."""

from __future__ import annotations

from typing import Final

from textual.binding import Binding

CAPTURE_KEYS: Final = [
    Binding("slash", "filter", "Filter", id="filter", tooltip="Keep what matches an expression"),
    Binding("f", "find", "Find", id="find", show=False,
            tooltip="A text in the pane, or bytes after hex:"),
    Binding("n", "match(1)", "Next match", id="next_match", show=False),
    Binding("N", "match(-1)", "Match before", id="previous_match", show=False),
    Binding("h", "hide", "Hide or dim the rest", id="hide", show=False,
            tooltip="What does not match a filter"),
    Binding("o", "others", "Other connections", id="others", show=False,
            tooltip="Show those that were not chosen, or not"),
    Binding("right_square_bracket", "failure(1)", "Next failure", id="next_failure",
            key_display="]", tooltip="Go to the next error"),
    Binding("left_square_bracket", "failure(-1)", "Failure before", id="previous_failure",
            key_display="[", show=False),
    Binding("right_curly_bracket", "finding(1)", "Next finding", id="next_finding",
            key_display="}", show=False, tooltip="Warnings and notes too"),
    Binding("left_curly_bracket", "finding(-1)", "Finding before", id="previous_finding",
            key_display="{", show=False),
    Binding("t", "clock", "Time", id="clock", tooltip="Since start, delta, absolute"),
    Binding("space", "pick", "Pick", id="pick", show=False, key_display="space",
            tooltip="Pick the operation, to compare two"),
    Binding("d", "compare", "Compare", id="compare", show=False,
            tooltip="The two picked operations field by field"),
    Binding("m", "mark", "Mark", id="mark", show=False, tooltip="Mark the operation by a letter"),
    Binding("apostrophe", "jump", "Go to a mark", id="jump", key_display="'", show=False),
    Binding("semicolon", "comment", "Comment", id="comment", key_display=";", show=False,
            tooltip="Write a remark on the operation"),
    Binding("x", "export", "Export", id="export", show=False,
            tooltip="Write what is shown to a file"),
    Binding("y", "copy", "Copy", id="copy", show=False, tooltip="Copy it as a send command"),
    Binding("r", "replay(False)", "Replay", id="replay", show=False,
            tooltip="The plan for sending it again from here"),
    Binding("s", "replay(True)", "Step", id="step_replay", show=False,
            tooltip="The same, to be sent one request at a time"),
    Binding("F", "follow", "Follow", id="follow", show=False,
            tooltip="Stay at the end of a capture that grows"),
    Binding("p", "pause", "Pause", id="pause", show=False,
            tooltip="Hold the view, never the recording"),
    Binding("z", "zoom", "Zoom", id="zoom", show=False, tooltip="Give the pane the whole screen"),
    *(
        Binding(str(number), f"pane('{name}')", f"Pane: {title}", id=f"pane_{name}", show=False)
        for number, (name, title) in enumerate(
            (
                ("sessions", "sessions"),
                ("ladder", "ladder"),
                ("finding", "finding"),
                ("fields", "detail"),
                ("state", "guest state"),
                ("statistics", "statistics"),
                ("log", "log"),
            ),
            start=1,
        )
    ),
    Binding("tab", "app.focus_next", "Next pane", id="next_pane", show=False),
    Binding("shift+tab", "app.focus_previous", "Pane before", id="previous_pane", show=False),
]  # fmt: skip

APP_KEYS: Final = [
    Binding("question_mark", "help", "Help", id="help", key_display="?"),
    Binding("colon", "command_palette", "Palette", id="palette", key_display=":",
            tooltip="Every action by its name"),
    Binding("q,ctrl+q", "quit", "Quit", id="quit"),
    Binding("ctrl+c", "quit", "Quit", id="interrupt", show=False),
]  # fmt: skip
