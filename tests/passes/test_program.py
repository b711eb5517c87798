from support import capture_family


def test_text_is_stable_and_says_what_matters() -> None:
    text = capture_family("bert")[0].program.text()
    assert text == capture_family("bert")[0].program.text()
    assert "weight 'embeddings.word_embeddings.weight'" in text
    assert "planish.attention(" in text
    assert "# encoder.layer.1.output.LayerNorm" in text
    assert "0x" not in text


def test_a_copy_can_be_edited_alone() -> None:
    program = capture_family("bert")[0].program
    other = program.copy()
    assert other.text() == program.text()
    gelu = next(n for n in other.graph.nodes if "gelu" in n.name)
    gelu.replace_all_uses_with(gelu.args[0])
    other.graph.erase_node(gelu)
    assert other.text() != program.text()
