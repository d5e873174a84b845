import pickle

import pytest

from swav_tf.data.names import PackedNames
from swav_tf.plumbing.names import name_bytes


# Bugs caught: names that are lost or shifted where blocks meet, empty names, a cached block of other names, more memory
# than names of one folder need.
@pytest.mark.parametrize("count", [0, 1, 32, 65, 1000])
def test_names_by_position(count):
    names = [f"n01440764/n01440764_{i * 7919:08d}.JPEG" for i in range(count)]
    names[3:6] = ["", "caf\udce9.jpg", "日本\u2028.jpg"][: len(names[3:6])]
    packed = PackedNames(names)
    data = b"".join(name_bytes(name) + b"\0" for name in names)
    for found in (packed, PackedNames.of([data[:777], data[777:]]), pickle.loads(pickle.dumps(packed))):
        assert (len(found), list(found)) == (count, names)
        assert [found[i] for i in reversed(range(count))] == names[::-1]
        assert found.to_bytes() == data
    with pytest.raises(IndexError):
        packed[count]
    assert count < 1000 or len(pickle.dumps(PackedNames(names))) < 10 * count
