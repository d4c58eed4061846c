// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

package mirror

import (
	"bytes"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// file is a hosts.toml, of which hosts can be left out.
type file struct {
	// server is what stands outside of the [host] tables: the server and how it is reached.
	server map[string]any
	// names are those of the [host] tables, in the order in which containerd asks the hosts.
	names []string
	hosts map[string]map[string]any
}

// parseFile reads a hosts.toml of a directory. In the result all paths are absolute, so that it can
// be written elsewhere.
func parseFile(dir string, raw []byte) (file, error) {
	var all struct {
		Hosts map[string]map[string]any `toml:"host"`
	}
	f := file{server: map[string]any{}}
	if err := toml.Unmarshal(raw, &all); err != nil {
		return file{}, err
	}
	if err := toml.Unmarshal(raw, &f.server); err != nil {
		return file{}, err
	}
	f.server = normalize(dir, f.server)
	delete(f.server, "host")
	f.hosts = map[string]map[string]any{}
	for name, table := range all.Hosts {
		f.hosts[name] = normalize(dir, table)
	}
	f.names = hostNames(raw)
	return f, nil
}

// normalize makes the paths of a table absolute, and its keys lower case: containerd takes them in any.
// Of a key that stands there in two, the one in lower case counts. For containerd it is the last, which
// no map tells.
func normalize(dir string, table map[string]any) map[string]any {
	normal := map[string]any{}
	for _, written := range slices.Sorted(maps.Keys(table)) { // upper case first
		key, value := strings.ToLower(written), table[written]
		if key == "ca" || key == "client" {
			value = absolute(dir, value)
		}
		normal[key] = value
	}
	return normal
}

// absolute makes paths absolute: one, or lists of them.
func absolute(dir string, value any) any {
	switch value := value.(type) {
	case string:
		if filepath.IsAbs(value) {
			return value
		}
		return filepath.Join(dir, value)
	case []any:
		all := make([]any, len(value))
		for i, v := range value {
			all[i] = absolute(dir, v)
		}
		return all
	default:
		return value
	}
}

// hostNames are the names of the [host] tables in their order, which no map tells.
func hostNames(raw []byte) (names []string) {
	var parser unstable.Parser
	parser.Reset(raw)
	for parser.NextExpression() {
		if parser.Expression().Kind != unstable.Table {
			continue
		}
		var key []string
		for parts := parser.Expression().Key(); parts.Next(); {
			key = append(key, string(parts.Node().Data))
		}
		if len(key) >= 2 && key[0] == "host" && !slices.Contains(names, key[1]) {
			names = append(names, key[1])
		}
	}
	return names
}

// mayResolve reports whether a host may be asked what a tag means, which is the default.
func (f *file) mayResolve(name string) bool {
	capabilities, _ := f.hosts[name]["capabilities"].([]any)
	return len(capabilities) == 0 || slices.ContainsFunc(capabilities, func(capability any) bool {
		text, _ := capability.(string)
		return strings.EqualFold(text, "resolve")
	})
}

// rewrites reports whether the names of images are to be rewritten before a host is asked: k3s writes
// this, and only its own containerd goes by it.
func (f *file) rewrites(name string) bool { return f.hosts[name]["rewrite"] != nil }

// marshal writes the file.
func (f *file) marshal() ([]byte, error) {
	var out bytes.Buffer
	add := func(table map[string]any) error {
		text, err := toml.Marshal(table)
		if err != nil {
			return fmt.Errorf("encode hosts.toml: %w", err)
		}
		// The tables of one host each: the table above them may stand once only.
		_, _ = out.Write(bytes.TrimPrefix(text, []byte("[host]\n")))
		return out.WriteByte('\n')
	}
	if err := add(f.server); err != nil {
		return nil, err
	}
	for _, name := range f.names {
		if err := add(map[string]any{"host": map[string]any{name: f.hosts[name]}}); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), nil
}
