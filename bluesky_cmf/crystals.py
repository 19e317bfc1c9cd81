"""A crystal structure as the reflections of its powder: spacings and squared structure factors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError

__all__ = ["Crystal", "powder_reflections"]

Array = npt.NDArray[Any]

#: Most reciprocal lattice points that are looked at: beyond it an axis is in another unit.
_MOST_POINTS = 20_000_000
#: Waves that are held at a time: bounds the memory of large structures.
_CHUNK = 1 << 19
#: Squared structure factors below this share of the strongest are rounding: absent reflections.
_ABSENT = 1e-12
#: Reflections whose 1/d² agree to within this share lie at one place.
_SAME = 1e-9
#: How far, relative to the cell, symmetry may miss the cell: rounded numbers, no more.
_EXACT = 1e-6


@dataclass(frozen=True, eq=False)
class Crystal:
    """A crystal structure: cell, symmetry, and the atoms of its asymmetric unit.

    Attributes
    ----------
    metric : ndarray (3, 3)
        Metric tensor of the cell in Å².
    rotations, translations : ndarray (G, 3, 3) and (G, 3)
        The operators of the space group, centring included: x becomes R x + t.
    positions : ndarray (S, 3)
        Fractional coordinates of the sites.
    amounts : ndarray (S,)
        Occupancy of each site, divided by how many operators leave the site where it is.
    form_factors : ndarray (S, 9)
        Coefficients a₁…a₄, b₁…b₄, c of f(s) = Σ aᵢ exp(-bᵢ s²) + c, where s = sin θ/λ in 1/Å.
    u_iso : ndarray (S,)
        Mean square displacements in Å², zero where they are in ``u_star``.
    u_star : ndarray (S, 3, 3)
        Anisotropic displacements U*ᵢⱼ = Uᵢⱼ a*ᵢ a*ⱼ, without a unit, zero where there are none.
    """

    metric: Array
    rotations: Array
    translations: Array
    positions: Array
    amounts: Array
    form_factors: Array
    u_iso: Array
    u_star: Array

    @property
    def volume(self) -> float:
        """Volume of the cell in Å³."""
        return float(np.sqrt(np.linalg.det(self.metric)))

    def structure_factors(self, hkl: Array) -> Array:
        """Give the structure factors of reflections, in electrons.

        Parameters
        ----------
        hkl : ndarray (N, 3)
            Miller indices.

        Returns
        -------
        ndarray (N,) of complex
            F(h) = Σ over sites and operators of n f(s) T(h R) exp(2πi h·(R x + t)), with amounts
            n and displacement factors T = exp(-8π² U s²) or exp(-2π² hᵀ U* h) (International
            Tables for Crystallography, Vol. B, 1.2, and Vol. C, 6.1.1).
        """
        rows = max(1, _CHUNK // len(self.positions))
        parts = [self._factors(hkl[at : at + rows]) for at in range(0, len(hkl), rows)]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=complex)

    def _factors(self, hkl: Array) -> Array:
        scattering = self._scattering(_inverse_square(self.metric, hkl) / 4)
        total = np.zeros(len(hkl), dtype=complex)
        moving = self.u_star.any(axis=(1, 2))
        for rotation, translation in zip(self.rotations, self.translations, strict=True):
            turned = hkl @ rotation
            waves = np.exp(2j * np.pi * (turned @ self.positions.T)) * scattering
            if moving.any():
                u = self.u_star[moving]
                waves[:, moving] *= np.exp(
                    -2 * np.pi**2 * np.einsum("ni,sij,nj->ns", turned, u, turned, optimize=True)
                )
            total += waves.sum(axis=1) * np.exp(2j * np.pi * (hkl @ translation))
        return total

    def _scattering(self, s2: Array) -> Array:
        """Amount, form factor and isotropic displacement of each site (N, S)."""
        a, b, c = np.split(self.form_factors, [4, 8], axis=1)
        forms = (a * np.exp(-b * s2[:, None, None])).sum(axis=2) + c[:, 0]
        shaken: Array = self.amounts * forms * np.exp(-8 * np.pi**2 * np.outer(s2, self.u_iso))
        return shaken


def powder_reflections(crystal: Crystal, low: float, high: float) -> tuple[Array, Array]:
    """Give the reflections of a powder, one for each spacing.

    Parameters
    ----------
    crystal : Crystal
        The structure.
    low, high : float
        Range of 1/d in 1/Å.

    Returns
    -------
    inverse_spacings : ndarray (L,)
        1/d of each reflection in 1/Å, increasing.
    strengths : ndarray (L,)
        Multiplicity times |F|², added up over the reflections at one place. Reflections that the
        symmetry forbids are left out.

    Raises
    ------
    InputError
        Where the range holds more than twenty million lattice points.
    """
    hkl = _half_sphere(crystal.metric, low, high)
    rotations = np.unique(crystal.rotations, axis=0)
    if not _keeps(crystal.metric, rotations):
        # Equivalent reflections then lie apart: each is taken by itself.
        rotations = np.eye(3, dtype=int)[None]
    hkl, multiplicity = _unique(hkl, rotations)
    strengths = multiplicity * np.abs(crystal.structure_factors(hkl)) ** 2
    seen = strengths > _ABSENT * strengths.max(initial=0.0)
    return _merged(_inverse_square(crystal.metric, hkl[seen]), strengths[seen])


def _inverse_square(metric: Array, hkl: Array) -> Array:
    """1/d² of reflections."""
    squares: Array = np.einsum("ni,ij,nj->n", hkl, np.linalg.inv(metric), hkl, optimize=True)
    return squares


def _half_sphere(metric: Array, low: float, high: float) -> Array:
    """Miller indices with 1/d from low to high; of h and -h only one."""
    most = np.floor(high * np.sqrt(np.diag(metric)) + 1e-9).astype(int)
    if np.prod(2.0 * most + 1) > 2 * _MOST_POINTS:
        raise InputError(
            f"axis: down to a spacing of {1 / high:.3g} angstrom this crystal has more than "
            f"{_MOST_POINTS:,} lattice points; expected a shorter axis, in degrees or 1/angstrom"
        )
    found = []
    k, l_ = np.meshgrid(*(np.arange(-m, m + 1) for m in most[1:]), indexing="ij")
    for h in range(most[0] + 1):
        hkl = np.stack([np.full_like(k, h), k, l_], axis=-1).reshape(-1, 3)
        if h == 0:
            hkl = hkl[(hkl[:, 1] > 0) | ((hkl[:, 1] == 0) & (hkl[:, 2] > 0))]
        squares = _inverse_square(metric, hkl)
        found.append(hkl[(squares >= low**2 * (1 - _SAME)) & (squares <= high**2 * (1 + _SAME))])
    return np.concatenate(found)


def _keeps(metric: Array, rotations: Array) -> bool:
    """Whether rotations leave the cell as it is, to within rounding."""
    turned = np.einsum("gia,ij,gjb->gab", rotations, metric, rotations)
    return bool(np.abs(turned - metric).max() <= _EXACT * np.abs(metric).max())


def _unique(hkl: Array, rotations: Array) -> tuple[Array, Array]:
    """Keep one reflection of each set of equivalent ones, h and -h among them; count the set."""
    if not len(hkl):
        return hkl, np.zeros(0, dtype=int)
    # No image has an index beyond this: the entries of a rotation are at most 2 in size.
    reach = 1 + 6 * int(np.abs(hkl).max())
    base = np.array([(2 * reach) ** 2, 2 * reach, 1])
    labels = np.zeros(len(hkl), dtype=int)
    for rotation in rotations:
        # The label of -h is the label of h with its sign changed.
        np.maximum(labels, np.abs(hkl @ (rotation @ base)), out=labels)
    _, first, counts = np.unique(labels, return_index=True, return_counts=True)
    return hkl[first], 2 * counts


def _merged(squares: Array, strengths: Array) -> tuple[Array, Array]:
    """Add up what lies at one place."""
    order = np.argsort(squares, kind="stable")
    squares, strengths = squares[order], strengths[order]
    if not len(squares):
        return squares, strengths
    apart = np.diff(squares) > _SAME * squares[1:]
    starts = np.flatnonzero(np.concatenate([[True], apart]))
    return np.sqrt(squares[starts]), np.add.reduceat(strengths, starts)
