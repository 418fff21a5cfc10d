"""The OpenAI front door and the prefill/decode router. No torch.

A request's way: `service` has the `front` make a `request.client_request` of the client's `request.body`; a
`delivery.delivery` brings the answer, or `strands` of them where several are asked for; `relay` or `native_relay` hands
it on.

Before that, `admission` finds it a place: room for its keys and values with a worker that decodes, by the worker's
`capacity`, which `capacity_watch` keeps true, and in doubt by a `reservation`. Who finds none is `waiting`.

A delivery asks the `workers.pool` for a `route` over `worker`s, and `legs` walk it, of which `prefill` yields the
`ticket`. Each leg is a `wire.exchange`, made by the `worker_client`. The `journal` keeps what the client has; when an
exchange fails, or `stalls` gives it up for its `silence`, when `patience` is at its end, the delivery tries again
within the `budget`, with a `continuation` of the client's `progress`: `exactness` says which way is exact, and the
`overlap` with what the client has is left out.

Who gets in at all, and for how long, is the `door`'s to say within `request.limits`; `refusals` are for what nobody may
send, `internal` is what clients neither set nor see, and `worker_access` what workers are shown.

What is known of a worker are its `vitals` and its `breaker`; `health` and `introduction` tell who is up. `server`
starts and stops all of it; where it is known who is `expected` at each address, `fleet.readiness` opens the pool.
"""
