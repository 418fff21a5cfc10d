"""LoRA: small trained factors beside frozen matrices, and PEFT's folders of them, both ways."""
