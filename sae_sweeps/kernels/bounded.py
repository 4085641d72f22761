"""A product of float32 matrices taken in bfloat16 on a CPU, with a bound of the error of each of its elements.

What the bound decides need not be computed in float32; what it leaves open is. So a selection by z is exact at the
price of the product in bfloat16. x is a token's centred activation, w a feature's row of W_enc^T, both d numbers in
float32; x', w' are the same rounded to bfloat16; z' = x'.w' as the processor returns it in bfloat16; b the bias; and

    z = fl(fl(x.w) + b)

the pre-activation that float32 gives, whatever the order of its sum. For d <= LONGEST and all rows that are finite

    |z - (z' + b)|  <=  e  =  alpha |w'| + beta |w - w'| + U |z'| + V |z' + b|                                (1)
    alpha = (|x - x'| + G |x'| + g |x|) SLACK,   beta = (1 + g) |x| SLACK

with | | of a row its Euclidean norm, g = d 2^-23, G = 1.01 g, U = 2^-8 + 2^-19 and V = 2^-19. Where a row or z' is
not finite, or a norm is LARGEST or more, e is infinite or NaN and decides nothing.

Proof. x.w - x'.w' = (x - x').w' + x.(w - w'), and by Cauchy and Schwarz

    |x.w - x'.w'|  <=  |x - x'| |w'| + |x| |w - w'|.

That is from the roundings themselves, which are known: about half of what the largest possible, 2^-8 |x_i|, give.

Sums. The product of two bfloat16 numbers has 16 significant bits, so it is exact in float32. Each of at most d
additions rounds by at most r = 2^-24 of its result where it rounds to nearest (AVX-512, AMX), 2^-23 where it truncates
or rounds to odd (Arm). Then a sum in any order differs from x'.w' by at most d r / (1 - d r) sum |x'_i w'_i| <=
G |x'| |w'|, as d <= 2^14. In the same way |fl(x.w) - x.w| <= g |x| |w|, and |w| <= |w'| + |w - w'|.

Results. z' is rounded to bfloat16 by at most half of its last place, 2^-8 |z'|. The two additions of b and the few
operations that evaluate (1) and add e to z' + b in float32 round by 2^-24 each, of |z' + b|, |z'| or e: together less
than 16 * 2^-24 of each. V and the second part of U, 2^-19, hold the first two, half of what SLACK = 1 + 2^-16 adds to e
the third.

Underflow. A processor may take numbers below 2^-126 as 0: numbers of x' and w', products, sums, z'. That costs at most
2^-126 (4 d + sqrt(d) (|x'| + |w'|)). The other half of SLACK holds it: each norm in alpha, beta and of a feature is at
least FLOOR = 2^-40, so that e >= 2^-41 (|x| + |w'|) >= 2^-81. In a norm the squares of numbers below 2^-63 may vanish,
sqrt(d) 2^-63 of the norm at most: less than half of FLOOR, or than the factor adds where a norm is so large that FLOOR
is lost in it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

U = 2.0**-8 + 2.0**-19
V = 2.0**-19
SLACK = 1 + 2.0**-16
FLOOR = 2.0**-40
LARGEST = 2.0**62
"""Norms from here on count as infinite: no sum of products of two below it overflows."""
LONGEST = 2**14
"""Largest d of the proof."""


@dataclass
class Rounded:
    """Rows of float32 in bfloat16, with upper bounds of three norms of each [n], float32, infinite from LARGEST on."""

    rows: Tensor
    """[n, d], bfloat16, contiguous."""
    norm: Tensor
    """|row'|, of the rounded row."""
    rest: Tensor
    """|row - row'|, of what rounding took."""
    whole: Tensor
    """|row|."""


def factors(x: Rounded) -> tuple[Tensor, Tensor]:
    """alpha and beta of (1) for each token [B]; |w'| and |w - w'| are `norm` and `rest` of the features' `Rounded`."""
    g = x.rows.shape[1] * 2.0**-23
    return (x.rest + 1.01 * g * x.norm + g * x.whole) * SLACK, x.whole * ((1 + g) * SLACK)
