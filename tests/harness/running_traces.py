"""Running traces as the policy sees them, drawn at random."""

from hypothesis import strategies as st

from step_infer.policy import RunningTrace

TRACES = st.lists(
    st.builds(
        RunningTrace,
        st.uuids().map(str),
        st.sampled_from("abc"),
        st.none() | st.floats(0, 1),
        st.integers(0, 5),
        st.integers(0, 100),
        st.floats(0, 9),
        st.integers(1, 3),
        st.integers(1, 3),
    ),
    max_size=20,
)
