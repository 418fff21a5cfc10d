"""A router under attack: mock instances that speak vLLM's pull protocol fail in every way, and every answer is judged.

              ┌──────── router ────────┐          any program that speaks the protocol, seen over HTTP alone
    client ───┤                        ├──▶ mock prefill ×2
      │       └────────────────────────┘        ▲ pull
      ▼                      ▲                  │
    judge ◀── load           └──────────▶ mock decode ×2 ◀── strikes: killed, frozen, slow, cut, refusing, ...

`trial` plays a `row`: it starts a `cluster` and the router's `command`, warms both up, sends the `load` through the
`client`, lets the row's strikes fall, has the `judge` look at every byte, and sees that no instance holds anything in
the end. `table` prints what came of it. The instances are in `mock`.
"""
