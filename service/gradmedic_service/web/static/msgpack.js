// Decodes the types of MessagePack (https://msgpack.org) that the service sends.

const text = new TextDecoder();

export function decode(buffer) {
  const view = new DataView(buffer);
  let at = 0;

  const skip = (length) => { at += length; return at - length; };
  const string = (length) => text.decode(new Uint8Array(buffer, skip(length), length));
  const bytes = (length) => buffer.slice(skip(length), at);
  const array = (length) => Array.from({ length }, read);
  const map = (length) => {
    const result = {};
    for (let index = 0; index < length; index += 1) { const key = read(); result[key] = read(); }
    return result;
  };

  function read() {
    const kind = view.getUint8(skip(1));
    if (kind < 0x80) return kind;
    if (kind < 0x90) return map(kind & 0x0f);
    if (kind < 0xa0) return array(kind & 0x0f);
    if (kind < 0xc0) return string(kind & 0x1f);
    if (kind >= 0xe0) return kind - 0x100;
    switch (kind) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return bytes(view.getUint8(skip(1)));
      case 0xc5: return bytes(view.getUint16(skip(2)));
      case 0xc6: return bytes(view.getUint32(skip(4)));
      case 0xca: return view.getFloat32(skip(4));
      case 0xcb: return view.getFloat64(skip(8));
      case 0xcc: return view.getUint8(skip(1));
      case 0xcd: return view.getUint16(skip(2));
      case 0xce: return view.getUint32(skip(4));
      case 0xcf: return Number(view.getBigUint64(skip(8)));
      case 0xd0: return view.getInt8(skip(1));
      case 0xd1: return view.getInt16(skip(2));
      case 0xd2: return view.getInt32(skip(4));
      case 0xd3: return Number(view.getBigInt64(skip(8)));
      case 0xd9: return string(view.getUint8(skip(1)));
      case 0xda: return string(view.getUint16(skip(2)));
      case 0xdb: return string(view.getUint32(skip(4)));
      case 0xdc: return array(view.getUint16(skip(2)));
      case 0xdd: return array(view.getUint32(skip(4)));
      case 0xde: return map(view.getUint16(skip(2)));
      case 0xdf: return map(view.getUint32(skip(4)));
      default: throw new Error(`MessagePack of kind ${kind} is not expected`);
    }
  }
  return read();
}
