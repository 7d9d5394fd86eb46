"""A Worker of one's own: the project that ``ech-workers worker init`` writes. ``template`` is the source it is made from."""

from ech_workers.worker.project import Project, create

__all__ = ["Project", "create"]
