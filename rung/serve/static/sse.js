// Server-sent events from a fetch: the one place where they are parsed.

/** The data of each event of `stream` (bytes), in order. Lines may be cut anywhere, also inside a
 *  character; line ends are \n, \r\n or \r; comments and other fields are passed over. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let half = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      half += done ? "\n" : value;
      // A \r at the very end may be the first half of \r\n: it waits.
      const usable = !done && half.endsWith("\r") ? half.length - 1 : half.length;
      const lines = half.slice(0, usable).split(/\r\n|\n|\r/);
      half = lines.pop() + half.slice(usable);
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield data.join("\n");
          data = [];
        } else if (line === "data" || line.startsWith("data:")) {
          data.push(line.slice(5).replace(/^ /, ""));
        }
      }
      if (done) {
        if (data.length) yield data.join("\n");
        return;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // whoever stops reading early ends the request
  }
}
