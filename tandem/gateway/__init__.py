"""The OpenAI front door and the prefill/decode router. No torch.

A request's way: `service` has the `front` make a `client_request` of the client's `body`, `pool` names the workers,
`attempt` walks the `legs`, of which `prefill` yields the `ticket`, `relay` or `native_relay` hands the answer on.
`server` starts and stops all of it; where it is known who is `expected` at each address, `readiness` opens the pool.
"""
