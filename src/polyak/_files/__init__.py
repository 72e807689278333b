"""Our bytes: safetensors files that say what they hold, written whole or not at all."""
