"""Instances under load and under attack: real processes, killed and frozen at random moments, every answer checked.

trial ──▶ fleet (instances) ◀── storm kills, freezes, starts again
  │         ▲
  ├──▶ client, as a gateway would ask ──▶ ledger: how each request ended, and why
  └──▶ expectation: the same answers from one engine alone and from a plain forward pass
"""
