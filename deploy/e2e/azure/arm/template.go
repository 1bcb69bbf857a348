package arm

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"strings"
	"unicode"
)

const deploymentType = "microsoft.resources/deployments"

var deploymentRoutes = []route{
	on(http.MethodPost, `(.*)/providers/microsoft.resources/deployments/[^/]+/validate`, func(_ *Server, c *call) response {
		properties := child(c.body, "properties")
		if _, err := expand(properties, c.match[1], ""); err != nil {
			return failure(http.StatusBadRequest, "InvalidTemplate", "Deployment template validation failed: '%s'.", err)
		}
		properties["provisioningState"] = "Succeeded"
		return ok(object{"properties": properties})
	}),
}

// deploy creates the resources of a deployment's template.
func (s *Server) deploy(r *resource) error {
	group, _, _ := strings.Cut(r.id, "/providers/")
	location := ""
	if found := s.resources[strings.ToLower(group)]; found != nil {
		location = text(found.body["location"])
	}
	expanded, err := expand(r.properties(), group, location)
	if err != nil {
		return err
	}
	created := []any{}
	for _, body := range expanded {
		kind, name := text(body["type"]), text(body["name"])
		id := group + "/providers/" + kind + "/" + name // of a type without a parent
		if kinds, names := strings.Split(kind, "/"), strings.Split(name, "/"); len(names) > 1 && len(kinds) == len(names)+1 {
			id = group + "/providers/" + kinds[0]
			for i := range names {
				id += "/" + kinds[i+1] + "/" + names[i]
			}
		}
		delete(body, "apiVersion")
		delete(body, "dependsOn")
		resource := &resource{id: id, body: body}
		child(body, "properties")["provisioningState"] = "Succeeded"
		s.resources[strings.ToLower(id)] = resource
		s.complete(resource, strings.ToLower(kind))
		created = append(created, object{"id": id})
	}
	r.properties()["outputResources"] = created
	return nil
}

// expand returns the resources of a template, with its expressions replaced by their
// values.
func expand(properties object, group, location string) ([]object, error) {
	template, _ := properties["template"].(object)
	given, _ := properties["parameters"].(object)
	if template == nil {
		return nil, errors.New("the deployment has no template")
	}
	e := &evaluator{group: group, location: location, template: template, parameters: object{}}
	declared, _ := template["parameters"].(object)
	for name, declaration := range declared {
		declaration, _ := declaration.(object)
		switch value, isGiven := given[name].(object); {
		case isGiven:
			e.parameters[name] = value["value"]
		case declaration["defaultValue"] != nil:
			value, err := e.value(declaration["defaultValue"])
			if err != nil {
				return nil, err
			}
			e.parameters[name] = value
		default:
			return nil, fmt.Errorf("the template parameter %s has no value", name)
		}
	}
	for name := range given {
		if declared[name] == nil {
			return nil, fmt.Errorf("the template has no parameter %s", name)
		}
	}
	sources, _ := template["resources"].([]any)
	var expanded []object
	for _, source := range sources {
		value, err := e.value(source)
		if err != nil {
			return nil, err
		}
		expanded = append(expanded, value.(object))
	}
	return expanded, nil
}

// evaluator evaluates the expressions of templates, as far as this repository's use them.
type evaluator struct {
	group      string // id of the resource group
	location   string
	template   object
	parameters object

	index int    // of copyIndex()
	rest  string // what is still to be parsed
}

func (e *evaluator) value(source any) (any, error) {
	switch source := source.(type) {
	case string:
		if !strings.HasPrefix(source, "[") || strings.HasPrefix(source, "[[") || !strings.HasSuffix(source, "]") {
			return source, nil
		}
		inner := *e
		inner.rest = source[1 : len(source)-1]
		value, err := inner.expression()
		if err == nil && strings.TrimSpace(inner.rest) != "" {
			err = fmt.Errorf("unexpected %q", inner.rest)
		}
		if err != nil {
			return nil, fmt.Errorf("evaluate %s: %w", source, err)
		}
		return value, nil
	case object:
		result := object{}
		for key, below := range source {
			value, err := e.value(below)
			if err != nil {
				return nil, err
			}
			result[key] = value
		}
		return result, nil
	case []any:
		result := []any{}
		for _, below := range source {
			value, err := e.value(below)
			if err != nil {
				return nil, err
			}
			result = append(result, value)
		}
		return result, nil
	}
	return source, nil
}

// expression parses and evaluates 'text' or name(arguments).property.
func (e *evaluator) expression() (any, error) {
	e.rest = strings.TrimSpace(e.rest)
	if quoted, found := strings.CutPrefix(e.rest, "'"); found {
		literal, after, closed := strings.Cut(quoted, "'")
		if !closed {
			return nil, fmt.Errorf("unclosed string %q", e.rest)
		}
		e.rest = after
		return literal, nil
	}
	name := e.rest[:len(e.rest)-len(strings.TrimLeftFunc(e.rest, unicode.IsLetter))]
	var arguments []any
	rest, isCall := strings.CutPrefix(e.rest[len(name):], "(")
	if !isCall {
		return nil, fmt.Errorf("unexpected %q", e.rest)
	}
	for e.rest = strings.TrimSpace(rest); !strings.HasPrefix(e.rest, ")"); {
		argument, err := e.expression()
		if err != nil {
			return nil, err
		}
		arguments = append(arguments, argument)
		e.rest = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(e.rest), ","))
		if e.rest == "" {
			return nil, fmt.Errorf("unclosed call of %s", name)
		}
	}
	e.rest = e.rest[1:]
	value, err := e.call(name, arguments)
	for err == nil {
		switch {
		case strings.HasPrefix(e.rest, "."):
			property := e.rest[1 : len(e.rest)-len(strings.TrimLeftFunc(e.rest[1:], unicode.IsLetter))]
			e.rest = e.rest[1+len(property):]
			value = value.(object)[property]
		case strings.HasPrefix(e.rest, "["):
			e.rest = e.rest[1:]
			var index any
			if index, err = e.expression(); err != nil {
				return nil, err
			}
			position, isNumber := index.(int)
			elements, isArray := value.([]any)
			if !isNumber || !isArray || position >= len(elements) || !strings.HasPrefix(e.rest, "]") {
				return nil, fmt.Errorf("%s has no element %v", name, index)
			}
			e.rest, value = e.rest[1:], elements[position]
		default:
			return value, nil
		}
	}
	return nil, err
}

// copied returns the value of a variable that the template repeats with copy.
func (e *evaluator) copied(name string) (any, error) {
	variables, _ := e.template["variables"].(object)
	loops, _ := variables["copy"].([]any)
	for _, loop := range loops {
		loop := loop.(object)
		if loop["name"] != name {
			continue
		}
		count, err := e.value(loop["count"])
		if err != nil {
			return nil, err
		}
		elements := []any{}
		for i := range count.(int) {
			inner := *e
			inner.index = i
			element, err := inner.value(loop["input"])
			if err != nil {
				return nil, err
			}
			elements = append(elements, element)
		}
		return elements, nil
	}
	return nil, fmt.Errorf("there is no variable %s", name)
}

func (e *evaluator) call(name string, arguments []any) (any, error) {
	first := ""
	if len(arguments) > 0 {
		first = fmt.Sprint(arguments[0])
	}
	switch strings.ToLower(name) {
	case "parameters":
		if value, found := e.parameters[first]; found {
			return value, nil
		}
	case "variables":
		variables, _ := e.template["variables"].(object)
		if value, found := variables[first]; found {
			return e.value(value)
		}
		return e.copied(first)
	case "length":
		if elements, isArray := arguments[0].([]any); isArray {
			return len(elements), nil
		}
	case "copyindex":
		return e.index, nil
	case "concat":
		var all strings.Builder
		for _, argument := range arguments {
			fmt.Fprint(&all, argument)
		}
		return all.String(), nil
	case "format":
		for i, argument := range arguments[1:] {
			first = strings.ReplaceAll(first, fmt.Sprintf("{%d}", i), fmt.Sprint(argument))
		}
		return first, nil
	case "resourcegroup":
		return object{"id": e.group, "name": lastPart(e.group), "location": e.location}, nil
	case "subscription":
		return maps.Clone(subscription()), nil
	case "tolower":
		return strings.ToLower(first), nil
	case "resourceid":
		kinds := strings.Split(first, "/")
		id := []string{e.group, "providers", kinds[0]}
		for i, argument := range arguments[1:] {
			if i+1 >= len(kinds) {
				return nil, fmt.Errorf("too many names for %s", first)
			}
			id = append(id, kinds[i+1], fmt.Sprint(argument))
		}
		return strings.Join(id, "/"), nil
	}
	return nil, fmt.Errorf("%s(%s) is not known", name, first)
}
