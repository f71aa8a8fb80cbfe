// A run's layers in depth order, grouped by module.

const MOST_GROUPS = 40;

const moduleOf = (name, parts) => name.split(".").slice(0, parts).join(".");

/**
 * Return `[{name, short, group, position}]`, in depth order. A group is a module whose layers follow one another: as
 * deep in the tree of names as leaves a number of groups that can be looked over.
 */
export function arrange(layers) {
  const ordered = layers
    .map((layer, index) => ({ name: layer.name, depth: layer.depth ?? index, index, role: layer.role, shape: layer.shape }))
    .sort((one, other) => one.depth - other.depth || one.index - other.index);
  const deepest = Math.max(1, ...ordered.map(({ name }) => name.split(".").length - 1));
  let parts = deepest;
  const groupOf = (name) => moduleOf(name, Math.min(parts, Math.max(1, name.split(".").length - 1)));
  const count = () => ordered.filter((layer, at) => at === 0 || groupOf(layer.name) !== groupOf(ordered[at - 1].name)).length;
  while (parts > 1 && count() > MOST_GROUPS) parts -= 1;
  let key = null;
  let run = 0;
  return ordered.map((layer, position) => {
    const group = groupOf(layer.name);
    if (position === 0 || group !== groupOf(ordered[position - 1].name)) {
      run = position;
      key = group;
    }
    return {
      ...layer,
      position,
      group: key,
      groupStart: run,
      short: layer.name.startsWith(`${group}.`) ? layer.name.slice(group.length + 1) : layer.name,
    };
  });
}

/** Return the rows of a picture: a layer each, and one for a module that is folded. */
export function rowsOf(layers, folded) {
  const rows = [];
  for (let at = 0; at < layers.length;) {
    let end = at;
    while (end < layers.length && layers[end].groupStart === layers[at].groupStart) end += 1;
    const members = layers.slice(at, end);
    if (members.length > 1 && folded.has(members[0].group)) {
      rows.push({ label: members[0].group, group: members[0].group, layers: members, isFolded: true });
    } else {
      for (const layer of members) {
        rows.push({ label: layer.name, group: layer.group, layers: [layer], isFolded: false, isAlone: members.length === 1 });
      }
    }
    at = end;
  }
  return rows;
}

export const foldable = (layers) => [...new Set(layers.filter((layer, at) => at > layer.groupStart).map(({ group }) => group))];
