"""What the clients have in common: they go on until standard input ends, and say what they did."""

import sys
import threading

PATIENCE = 20
# Seconds between two rounds of who would otherwise keep a small machine busy.
PACE = 0.02


class Play:
    def __init__(self):
        self.rounds = 0
        self.over = threading.Event()
        threading.Thread(target=lambda: (sys.stdin.read(), self.over.set()), daemon=True).start()

    def round(self):
        print("round", self.rounds, flush=True)
        self.rounds += 1

    def ended(self, how):
        print("ended", how, flush=True)

    def done(self):
        print("done", self.rounds, flush=True)
