"""Building blocks of methods: losses, heads, queues, prototypes, memories, backbones."""
