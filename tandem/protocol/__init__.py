"""What processes say to each other: OpenAI bodies, KV tickets, server-sent events, identities. No torch."""
