package session

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/proto"

	"github.com/croft-cloud/croft/chain/api"
)

// formats are the forms of an answer, for commands that by default answer in
// the form given: table for people, text (YAML) as the Akash command line.
func formats(standard string) []string {
	if standard == "table" {
		return []string{"table", "wide", "json", "yaml"}
	}
	return []string{"text", "yaml", "json"}
}

// Table is an answer for people.
type Table struct {
	Head []string
	Wide int // how many of the last columns only `-o wide` shows
	rows [][]string
	None string // what to say when there is no row
}

// Row adds a row; it has a cell for each column.
func (t *Table) Row(cells ...string) { t.rows = append(t.rows, cells) }

// Text is the table for a terminal; wide shows all of its columns.
func (t *Table) Text(wide bool) string {
	if len(t.rows) == 0 && t.None != "" {
		return t.None + "\n"
	}
	columns := len(t.Head)
	if !wide {
		columns -= t.Wide
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, strings.ToUpper(strings.Join(t.Head[:columns], "\t")))
	for _, row := range t.rows {
		fmt.Fprintln(w, strings.Join(row[:columns], "\t"))
	}
	_ = w.Flush() // a Builder takes everything
	var trimmed strings.Builder
	for line := range strings.Lines(b.String()) {
		trimmed.WriteString(strings.TrimRight(line, " \n") + "\n")
	}
	return trimmed.String()
}

// Show prints an answer: t for people, v for programs. v is a message of the
// chain, JSON already, or any value encoding/json takes.
func (o *Options) Show(cmd *cobra.Command, t Table, v any) error {
	if err := o.CheckFormat(cmd); err != nil {
		return err
	}
	switch o.format {
	case "table", "wide":
		_, err := fmt.Fprint(cmd.OutOrStdout(), t.Text(o.format == "wide"))
		return err
	}
	return o.Print(cmd, v)
}

// Print answers in JSON or YAML.
func (o *Options) Print(cmd *cobra.Command, v any) error {
	if err := o.CheckFormat(cmd); err != nil {
		return err
	}
	raw, err := encode(v)
	if err != nil {
		return err
	}
	if o.format != "json" {
		if raw, err = yamlOf(raw); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), strings.TrimRight(string(raw), "\n"))
	return err
}

// CheckFormat looks at --output; commands that change something call it before.
func (o *Options) CheckFormat(cmd *cobra.Command) error {
	known := formats(cmd.Flag("output").DefValue)
	if !slices.Contains(known, o.format) {
		return Usage(fmt.Errorf("--output %s is not known", o.format), "choose "+strings.Join(known, ", "))
	}
	return nil
}

func encode(v any) ([]byte, error) {
	switch v := v.(type) {
	case proto.Message:
		return api.JSON(v)
	case json.RawMessage:
		return v, nil
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, fmt.Errorf("write answer: %w", err)
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// List is messages as one JSON array.
func List[M proto.Message](items []M) (json.RawMessage, error) {
	parts := make([]json.RawMessage, 0, len(items))
	for _, m := range items {
		raw, err := api.JSON(m)
		if err != nil {
			return nil, err
		}
		parts = append(parts, raw)
	}
	return json.Marshal(parts)
}

// yamlOf writes JSON as YAML, its keys in the same order.
func yamlOf(raw []byte) ([]byte, error) {
	var n yaml.Node
	if err := yaml.Unmarshal(raw, &n); err != nil { // JSON is YAML
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	plain(&n)
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(&n); err != nil {
		return nil, fmt.Errorf("write YAML: %w", err)
	}
	return b.Bytes(), nil
}

// plain takes JSON's braces and quotes away where YAML needs none.
func plain(n *yaml.Node) {
	if n.Kind != yaml.MappingNode && n.Kind != yaml.SequenceNode || len(n.Content) > 0 {
		n.Style = 0
	}
	for _, c := range n.Content {
		plain(c)
	}
}
