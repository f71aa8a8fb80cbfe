// A run's layers in depth order, grouped by module.

const MAX_GROUPS = 40;

const moduleOf = (name, parts) => name.split(".").slice(0, parts).join(".");

/**
 * Return `[{name, role, shape, group, groupStart, position}]` in depth order. A group is a module whose layers follow one
 * another. Modules are as deep in the tree of names as possible with at most MAX_GROUPS groups.
 */
export function arrange(layers) {
  const ordered = layers
    .map((layer, index) => ({ name: layer.name, depth: layer.depth ?? index, index, role: layer.role, shape: layer.shape }))
    .sort((a, b) => a.depth - b.depth || a.index - b.index);
  const deepest = Math.max(1, ...ordered.map(({ name }) => name.split(".").length - 1));
  let parts = deepest;
  const groupOf = (name) => moduleOf(name, Math.min(parts, Math.max(1, name.split(".").length - 1)));
  const count = () => ordered.filter((layer, at) => at === 0 || groupOf(layer.name) !== groupOf(ordered[at - 1].name)).length;
  while (parts > 1 && count() > MAX_GROUPS) parts -= 1;
  let groupStart = 0;
  return ordered.map((layer, position) => {
    const group = groupOf(layer.name);
    if (position === 0 || group !== groupOf(ordered[position - 1].name)) groupStart = position;
    return { ...layer, position, group, groupStart };
  });
}

/** Return the rows of the heatmap: one for each layer, and one for each folded module. */
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

/** Return the modules that have more than one layer. */
export const foldable = (layers) => [...new Set(layers.filter((layer, at) => at > layer.groupStart).map(({ group }) => group))];
