"""What faces clients, on stage 0's machine: tokenizer, scheduler and streams."""
