"""The limits of uploads, as the server tells them and its own client keeps them."""

from __future__ import annotations

# Of a chunk, before and after decompression; a power of two. All chunks of a file but the last one
# are as large.
CHUNK_BYTES = 8 << 20
CHUNKS_PER_REQUEST = 64
# Of the chunks of a request, as clients count: plain, and without what is around them.
REQUEST_BYTES = 32 << 20
FILE_BYTES = 2 << 30
# How many requests a client sends at a time, and how many chunks are stored at a time.
CONCURRENCY = 8
