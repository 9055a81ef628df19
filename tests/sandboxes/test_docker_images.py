"""Which images will do, and what a task is told of one that will not."""

from __future__ import annotations

import pytest

from common.failures import ConfigurationError
from tests.sandboxes.docker_bed import containers, derived, docker, image_of
from tests.sandboxes.docker_bed import provider as provider
from workers.sandboxes.docker.provider import DockerProvider
from workers.sandboxes.protocol import SandboxStartError, SandboxUnsupported
from workers.sandboxes.spec import Limits, NetworkPolicy, SandboxSpec

pytestmark = pytest.mark.docker


async def test_an_image_that_will_not_do_is_named_with_the_reason(
    provider: DockerProvider,
) -> None:
    old = "import sys; sys.version_info = (3, 8, 1, 'final', 0)"
    for image, reason in (
        (image_of("empty", {"etc/nothing": b""}), "no python3"),
        (image_of("not-runnable", {"bin/python3": b"no program"}, "ENV PATH=/bin"), "no python3"),
        (derived("old", f'RUN echo "{old}" >/usr/lib/python3/dist-packages/old.pth'),
         "older than 3.9"),
        (derived("volume", "VOLUME /data"), "declares volumes (/data)"),
        ("fleet-test/nowhere:1", "docker pull fleet-test/nowhere:1"),
        ("--privileged", "no name of an image"),
        ("a b", "no name of an image"),
    ):  # fmt: skip
        with pytest.raises(SandboxUnsupported) as told:
            await provider.start(SandboxSpec(image=image))
        assert image in str(told.value)
        assert reason in str(told.value)
        assert containers() == []


async def test_the_beginning_of_an_id_names_no_image(provider: DockerProvider) -> None:
    whole = docker("image", "inspect", "--format", "{{.Id}}", derived("whole")).strip()
    short = whole.removeprefix("sha256:")[:12]
    with pytest.raises(SandboxUnsupported, match=f"{short}.* is no name of an image"):
        await provider.start(SandboxSpec(image=short))
    for reference in (whole, whole.removeprefix("sha256:")):
        await (await provider.start(SandboxSpec(image=reference))).close()


async def test_files_that_take_all_memory_are_the_tasks_fault(provider: DockerProvider) -> None:
    files = {f"f{n}": b"x" * (15 << 20) for n in range(5)}
    limits = Limits(memory_mb=32, disk_mb=64, file_mb=64)
    with pytest.raises(SandboxUnsupported, match="memory"):
        await provider.start(SandboxSpec(files=files, limits=limits))
    assert containers() == []


async def test_what_the_back_end_has_not_is_refused(provider: DockerProvider) -> None:
    for spec, reason in (
        (SandboxSpec(packages=("numpy",)), "packages"),
        (SandboxSpec(network=NetworkPolicy(mode="allowlist", hosts=("a.example.org",))), "hosts"),
        (SandboxSpec(files={"/usr/x": b""}), "/usr/x"),
    ):
        with pytest.raises(SandboxUnsupported, match=reason):
            await provider.start(spec)
        assert containers() == []


async def test_an_image_that_cannot_be_fetched_is_told_apart_from_one_that_is_not() -> None:
    """Nobody listens where this registry should be; a later try may help."""
    provider = DockerProvider(image="127.0.0.1:9/nothing:1", pull="missing")
    with pytest.raises(SandboxStartError, match="could not be fetched"):
        await provider.start(SandboxSpec())


async def test_the_operators_own_image_is_the_operators_to_mend() -> None:
    provider = DockerProvider(image="fleet-test/nowhere:1")
    with pytest.raises(ConfigurationError, match="docker pull fleet-test/nowhere:1"):
        await provider.probe()


async def test_what_an_image_says_of_itself_comes_below_what_we_say(
    provider: DockerProvider,
) -> None:
    image = derived(
        "talkative",
        "RUN mkdir /opt/own && ln -s /bin/echo /opt/own/say",
        "ENV COLOUR=blue HOME=/root TASK=image OMP_NUM_THREADS=3 PYTHONSTARTUP=/x",
        "ENV PATH=/opt/own:$PATH",
        'ENTRYPOINT ["/bin/false"]',
        "USER root",
        "WORKDIR /root",
        "HEALTHCHECK --interval=1s CMD touch /work/healthy",
    )
    async with await provider.start(SandboxSpec(image=image, env={"TASK": "spec"})) as sandbox:
        result = await sandbox.exec("say $COLOUR $HOME $TASK $OMP_NUM_THREADS; id -u; pwd")
        assert result.stdout == "blue /work spec 3\n1000\n/work\n"
        (one,) = containers()
        assert "Health" not in docker("inspect", "--format", "{{json .State}}", one)
        digest = docker("image", "inspect", "--format", "{{.Id}}", image).strip()
        assert sandbox.enforced["image"] == digest


async def test_a_tag_that_moves_meanwhile_changes_nothing(provider: DockerProvider) -> None:
    image = derived("moving", "RUN echo one >/etc/which")
    first = await provider.start(SandboxSpec(image=image))
    derived("moving", "RUN echo two >/etc/which")
    second = await provider.start(SandboxSpec(image=image))
    for sandbox in (first, second):
        assert (await sandbox.read_file("/etc/which")) == b"one\n"
    assert first.enforced["image"] == second.enforced["image"]


async def test_an_image_removed_meanwhile_is_looked_for_again(provider: DockerProvider) -> None:
    image = derived("gone", "RUN echo gone >/etc/which")
    await (await provider.start(SandboxSpec(image=image))).close()
    docker("image", "rm", "--force", image)
    with pytest.raises(SandboxStartError, match=r"(?i)no such image|unable to find"):
        await provider.start(SandboxSpec(image=image))
    with pytest.raises(SandboxUnsupported, match="docker pull"):
        await provider.start(SandboxSpec(image=image))


async def test_files_of_the_spec_are_there_before_anybody_gets_it(
    provider: DockerProvider,
) -> None:
    spec = SandboxSpec(files={"in/put.txt": b"x" * 2_000_000}, limits=Limits(disk_mb=8))
    async with await provider.start(spec) as sandbox:
        assert (await sandbox.exec("wc -c <in/put.txt")).stdout == "2000000\n"
