local status = obj.status or {}
if status.observedGeneration ~= obj.metadata.generation or status.conditions == nil then
  return {status = "Progressing", message = "the operator has not reconciled this version of the object yet"}
end

local held = {}
for _, condition in ipairs(status.conditions) do
  if condition.status == "True" then
    held[condition.type] = condition
  end
end

local function health(name, condition)
  local parts = {condition.reason}
  if name == "Progressing" and status.display ~= nil then
    table.insert(parts, status.display.progress)
  end
  if condition.message ~= nil and condition.message ~= "" then
    table.insert(parts, condition.message)
  end
  return {status = name, message = table.concat(parts, ": ")}
end

if held.Stalled then
  return health("Degraded", held.Stalled)
elseif held.Reconciling then
  return health("Progressing", held.Reconciling)
elseif held.Suspended then
  return health("Suspended", held.Suspended)
elseif held.Complete then
  return health("Healthy", held.Complete)
end
return {status = "Progressing", message = "the operator has not started a run yet"}
