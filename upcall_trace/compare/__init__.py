"""Two captures, or a recording and a run: pairing, judging, telling the differences."""
