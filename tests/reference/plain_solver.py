"""LU-KV's solver the straightforward way: a stack per head for its hull, a heap over the heads. Ours equals it.

Written from the paper's description (arXiv 2602.08585), with Python numbers: exact when the utilities are Fractions.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Any


def loss_curve(best_first: Sequence[Any], limit: int) -> list[Any]:
    """Loss after 0 .. limit discards, worst-ranked first."""
    curve = [0]
    for value in list(best_first)[::-1][:limit]:
        curve.append(curve[-1] + value)
    return curve


def hull_vertices(curve: Sequence[Any]) -> list[int]:
    """The discards at which the lower convex hull of (discards, loss) has its corners (no three on one line)."""
    stack: list[int] = []
    for m in range(len(curve)):
        while len(stack) > 1:
            a, b = stack[-2], stack[-1]
            if (curve[b] - curve[a]) * (m - b) < (curve[m] - curve[b]) * (b - a):
                break
            stack.pop()
        stack.append(m)
    return stack


def plain_solve(
    heads: Sequence[Sequence[Any]], limit: int, targets: Sequence[int]
) -> tuple[list[list[int]], list, list]:
    """Discards per head, loss and lower bound at each of the ascending `targets` of discards in total."""
    curves = [loss_curve(head, limit) for head in heads]
    vertices = [hull_vertices(curve) for curve in curves]
    heap: list[tuple[Any, int, int]] = []  # price per token, head, edge: equal prices go to the lower head

    def push(head: int, edge: int) -> None:
        if edge + 1 < len(vertices[head]):
            begin, end = vertices[head][edge : edge + 2]
            heapq.heappush(heap, ((curves[head][end] - curves[head][begin]) / (end - begin), head, edge))

    for head in range(len(heads)):
        push(head, 0)
    counts, total, hull = [0] * len(heads), 0, 0
    results, losses, bounds = [], [], []
    for target in targets:
        while total < target:
            price, head, edge = heapq.heappop(heap)
            end = vertices[head][edge + 1]
            step = min(end - counts[head], target - total)
            counts[head] += step
            total += step
            hull += step * price
            if counts[head] == end:
                push(head, edge + 1)
            else:
                heapq.heappush(heap, (price, head, edge))
        results.append(list(counts))
        losses.append(sum(curve[count] for curve, count in zip(curves, counts, strict=True)))
        bounds.append(hull)
    return results, losses, bounds
