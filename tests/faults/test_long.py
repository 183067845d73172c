"""Memory, open files and compiled programs stay constant over very many steps."""

import gc
import os

import jax
import psutil
import pytest
import training

STEPS = 200_000


@pytest.mark.slow
def test_resources_stay_constant(tmp_path, monkeypatch):
    """Checkpoints, metrics and logs every thousand steps, as in a training of weeks."""
    process, usage = psutil.Process(), []
    monkeypatch.setattr(training, "LOG", 1000)
    monkeypatch.setattr(training, "EVALUATE", 1000)
    monkeypatch.setattr(training, "CHECKPOINT", 1000)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )

    def quality(variables):
        gc.collect()
        usage.append((process.memory_info().rss, process.num_fds(), len(compiled)))
        return {"mean": 0.0}

    monkeypatch.setattr(training, "quality", quality)
    training.train(tmp_path, training.training_plan(STEPS), training.batches())
    memory, files, programs = zip(*usage, strict=True)
    assert len(usage) == STEPS // 1000
    assert len(os.listdir(tmp_path / "checkpoints")) == 2
    start = len(usage) // 3
    assert max(memory[start:]) < 1.05 * memory[start]
    assert max(files[1:]) <= files[1]
    assert programs[-1] == programs[1]
