"""Standard streams that close while the program runs."""

import os
import subprocess
import sys

from kd_jax.core.streams import SurvivingStream


def test_a_closed_pipe_is_reported_once_and_then_ignored():
    reader, writer = os.pipe()
    other_reader, other_writer = os.pipe()
    with os.fdopen(writer, "w") as broken, os.fdopen(other_writer, "w") as other:
        stream, log = SurvivingStream(broken), SurvivingStream(other)
        stream.other, log.other = log, stream
        assert stream.write("one\n") == 4
        stream.flush()
        assert os.read(reader, 100) == b"one\n"
        os.close(reader)
        for _ in range(3):
            stream.write("x" * 100_000)
            stream.flush()
        log.flush()
        (line,) = os.read(other_reader, 1000).splitlines()
        assert b"Broken pipe" in line
        os.close(other_reader)
        log.write("both are closed")
        log.flush()


def test_a_program_continues_without_its_output():
    code = (
        "import sys, time\n"
        "from kd_jax.core.streams import survive_closed_streams\n"
        "survive_closed_streams()\n"
        "for number in range(100):\n"
        "    print('line', number, flush=True)\n"
        "    print('error', number, file=sys.stderr, flush=True)\n"
        "open(sys.argv[1], 'w').write('done')\n"
    )
    reader, writer = os.pipe()
    with open(reader) as output:
        process = subprocess.Popen(
            [sys.executable, "-c", code, os.devnull], stdout=writer, stderr=writer
        )
        os.close(writer)
        assert output.readline() == "line 0\n"
    assert process.wait(60) == 0
