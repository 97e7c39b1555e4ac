import pytest

from crdtsync.errors import ConfigError
from regions import config

MINIMAL = {"CRDTSYNC_REGION": "eu", "CRDTSYNC_DATA_DIR": "/tmp/eu"}


def write(tmp_path, text):
    path = tmp_path / "eu.toml"
    path.write_text(text)
    return path


def problems(**kwargs):
    with pytest.raises(ConfigError) as caught:
        config.load(environ=kwargs.pop("environ", {}), **kwargs)
    assert caught.value.exit_code == 78
    return caught.value.facts.get("problems", [str(caught.value)])


def test_layers_override_each_other_and_say_where_a_value_came_from(tmp_path):
    path = write(
        tmp_path, 'region = "eu"\ndata_dir = "/d"\nlost_after_ms = 1000\nretention_s = 5\n[listen]\nport = 7000\n'
    )
    environ = {"CRDTSYNC_LOST_AFTER_MS": "2000", "CRDTSYNC_LISTEN__PORT": "7001"}
    loaded = config.load(path, {"retention_s": 9}, environ)
    assert (loaded.config.lost_after_ms, loaded.config.listen.port, loaded.config.retention_s) == (2_000, 7_001, 9)
    assert loaded.origins["region"] == str(path)
    assert loaded.origins["lost_after_ms"] == "CRDTSYNC_LOST_AFTER_MS"
    assert loaded.origins["listen.port"] == "CRDTSYNC_LISTEN__PORT"
    assert loaded.origins["retention_s"] == "command line"
    assert loaded.origins["cluster"] == "default"
    assert set(config.flat(loaded.config)) <= set(loaded.origins)


def test_every_field_documents_itself():
    for model in (config.Config, config.Listen, config.Limits):
        assert all(field.description for field in model.model_fields.values())


def test_an_unknown_key_is_an_error_with_a_suggestion(tmp_path):
    path = write(tmp_path, 'region = "eu"\ndata_dir = "/d"\nretention = 5\n[listen]\nprot = 1\n')
    found = problems(path=path)
    assert len(found) == 2
    assert "'retention'; did you mean 'retention_s'?" in found[0]
    assert "'listen.prot'; did you mean 'listen.port'?" in found[1]


def test_an_unknown_variable_is_an_error_but_not_one_of_other_commands():
    assert "did you mean 'CRDTSYNC_LOST_AFTER_MS'" in problems(environ={**MINIMAL, "CRDTSYNC_LOST_AFTER": "1"})[0]
    config.load(environ={**MINIMAL, "CRDTSYNC_NODE": "ws://x", "CRDTSYNC_CI_RUN": "1", "OTHER": "x"})


def test_all_problems_are_reported_together():
    found = problems(environ={"CRDTSYNC_REGION": "EU", "CRDTSYNC_HEADS_INTERVAL_MS": "9999"})
    assert len(found) == 3
    assert any(line.startswith("data_dir") for line in found)
    assert any(line.startswith("CRDTSYNC_HEADS_INTERVAL_MS: heads_interval_ms") for line in found)


@pytest.mark.parametrize("host", ["0.0.0.0", "", "10.0.0.1", "::", "example.org"])
@pytest.mark.parametrize("port", ["LISTEN", "PEER"])
def test_a_bind_off_loopback_is_refused_with_the_reason(host, port):
    (found,) = problems(environ={**MINIMAL, f"CRDTSYNC_{port}__HOST": host})
    assert "loopback" in found
    assert "until keys exist" in found


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "localhost", "::1"])
def test_loopback_binds_are_fine(host):
    assert config.load(environ={**MINIMAL, "CRDTSYNC_LISTEN__HOST": host}).config.listen.host == host


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:1", "ws://127.0.0.1", "ws://10.0.0.1:7000", "127.0.0.1:7000", "ws://example.org:80"]
)
def test_a_member_url_is_a_websocket_on_loopback(url):
    assert problems(environ={**MINIMAL, "CRDTSYNC_MEMBERS__EU": "ws://127.0.0.1:1", "CRDTSYNC_MEMBERS__US": url})


def test_members_name_this_region_too():
    (found,) = problems(environ={**MINIMAL, "CRDTSYNC_MEMBERS__US": "ws://127.0.0.1:1"})
    assert "'eu' is not among members (us)" in found


def test_a_region_alone_needs_no_members():
    assert config.load(environ=MINIMAL).config.regions == ("eu",)


def test_a_file_that_is_missing_or_no_toml_is_named(tmp_path):
    assert "nope.toml" in problems(path=tmp_path / "nope.toml")[0]
    assert "not TOML" in problems(path=write(tmp_path, "region = "))[0]


def test_a_config_is_frozen():
    loaded = config.load(environ=MINIMAL)
    with pytest.raises(Exception, match="frozen"):
        loaded.config.region = "us"
