"""Into how many chunks a cache is split: arithmetic on the host, from lengths that the host knows."""

from __future__ import annotations

from functools import lru_cache

# What a program costs beside its tokens (filling its pipeline, storing its part), in tokens.
_PROGRAM_TOKENS = 128
# Rounds of programs that are tried beyond the least: some more fill the last one, twice and four times
# as many let short sequences end early.
_ROUNDS_MORE = (0, 1, 2, 3)
_TIMES_THE_ROUNDS = (2, 4)


@lru_cache(maxsize=1024)
def chunk_tokens(lengths: tuple[int, ...], heads: int, at_once: int, block_n: int) -> int:
    """Tokens a program, a multiple of block_n.

    `lengths` in tokens, of every sequence; `heads` programs serve one chunk; `at_once` programs run at
    the same time. A round lasts as long as its chunk: of few rounds of long chunks and more of shorter
    ones the shortest whole is taken, and of equals the longest chunk.
    """
    longest = -(-max(lengths) // block_n) * block_n
    least = -(-_programs(lengths, heads, longest) // at_once)

    def cost(rounds: int) -> tuple[int, int]:
        chunk = _shortest_chunk(lengths, heads, rounds * at_once, block_n)
        return rounds * (chunk + _PROGRAM_TOKENS), rounds

    tried = [least + more for more in _ROUNDS_MORE] + [least * n for n in _TIMES_THE_ROUNDS]
    rounds = min(tried, key=cost)
    return _shortest_chunk(lengths, heads, rounds * at_once, block_n)


def split_count(longest: int, chunk: int) -> int:
    """Chunks of the longest sequence: what the grid and the partial results have room for."""
    return -(-longest // chunk)


def _programs(lengths: tuple[int, ...], heads: int, chunk: int) -> int:
    return heads * sum(-(-n // chunk) for n in lengths)


def _shortest_chunk(lengths: tuple[int, ...], heads: int, programs: int, block_n: int) -> int:
    """The shortest chunk that makes at most that many programs; the longest sequence where none does."""
    low, high = 1, -(-max(lengths) // block_n)  # in blocks
    while low < high:
        middle = (low + high) // 2
        if _programs(lengths, heads, middle * block_n) <= programs:
            high = middle
        else:
            low = middle + 1
    return low * block_n
