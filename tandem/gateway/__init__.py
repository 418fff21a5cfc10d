"""The OpenAI front door and the prefill/decode router. No torch.

A request's way: `service` opens a `trip` around the client's `body`, `pool` names the workers, `attempt` walks the two
`legs` with the `ticket` between them, `relay` hands the answer to the client. `server` starts and stops all of it.
"""
