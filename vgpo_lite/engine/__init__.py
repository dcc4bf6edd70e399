"""The model at work: groups are sampled, looked at and turned into gradients.

Reading order: `protocol` (what an engine does), `layout` (the row a group shares), `attend` (attention over it),
`passes` (forwards), `shared` (the engine; `planning.update` cuts its updates), `batched` (the ordinary way, kept as the
reference), `patient` (around either: smaller parts when memory runs out). docs/engine.md tells it with a drawing.
"""

from vgpo_lite.engine.backoff import Backoff
from vgpo_lite.engine.choice import make_engine
from vgpo_lite.engine.patient import PatientEngine
from vgpo_lite.engine.protocol import Engine, EngineSettings, Look
from vgpo_lite.engine.rollout import DecodeProgress

__all__ = ["Backoff", "DecodeProgress", "Engine", "EngineSettings", "Look", "PatientEngine", "make_engine"]
