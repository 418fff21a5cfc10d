"""The OpenAI front door and the prefill/decode router. No torch."""
